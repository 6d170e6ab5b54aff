"""Published rows: every figure that follows from them is computed here, and what does not add up is said to."""

from __future__ import annotations

import re
from decimal import Decimal
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import yaml

import visual_r1.report.published as module
from visual_r1.cli import main
from visual_r1.report.published import counts_printed_as, load_published, published
from visual_r1.report.published_table import markers, note_numbers, published_table
from visual_r1.statistics import wilson

DATA = Path(module.__file__).with_name("published.yaml")
ROWS = {row.key: row for row in published().rows}
NOTES: dict[str, str] = yaml.safe_load(DATA.read_text(encoding="utf-8"))["notes"]


def right(key: str, category: str | None = None) -> int:
    """The one number of right answers that fits a printed value."""
    row = ROWS[key]
    (count,) = row.total_counts if category is None else row.counts[category]
    return count


def printed(key: str, category: str | None = None) -> Decimal:
    return ROWS[key].total if category is None else ROWS[key].categories[category]


def z_between(first: str, second: str) -> float:
    """Of two independent shares of the same number of items, with their pooled variance."""
    n = ROWS[first].benchmark.num_items
    shares = [float(ROWS[key].total) / 100 for key in (first, second)]
    pooled = sum(shares) / 2
    return abs(shares[0] - shares[1]) / sqrt(2 * pooled * (1 - pooled) / n)


def z_from_coin(key: str, category: str) -> float:
    n = ROWS[key].benchmark.categories[category]
    return abs(right(key, category) - n / 2) / sqrt(n / 4)


class TestCounts:
    def test_a_value_may_be_cut_off_or_rounded(self):
        assert counts_printed_as(Decimal("66.66"), 3) == counts_printed_as(Decimal("66.67"), 3) == (2,)
        assert counts_printed_as(Decimal("66.65"), 3) == counts_printed_as(Decimal("66.68"), 3) == ()

    def test_few_decimals_leave_several(self):
        # 58.35 <= 100 k / 2638 < 58.5, by hand
        assert counts_printed_as(Decimal("58.4"), 2638) == (1540, 1541, 1542, 1543)
        assert counts_printed_as(Decimal("58"), 10) == ()

    def test_no_count_lies_outside_the_items(self):
        assert counts_printed_as(Decimal("0.0"), 2195) == (0, 1, 2)
        assert counts_printed_as(Decimal("100.0"), 2638) == (2637, 2638)

    @pytest.mark.parametrize("num_items", [7, 267, 788, 2638])
    def test_every_count_is_among_those_that_its_own_printing_fits(self, num_items):
        for count in range(num_items + 1):
            rounded = Decimal(f"{100 * count / num_items:.2f}")
            cut_off = Decimal(10_000 * count // num_items) / 100
            assert count in counts_printed_as(rounded, num_items) and count in counts_printed_as(cut_off, num_items)


class TestRows:
    def test_all_that_the_paper_and_its_followers_print_is_there(self):
        totals = {key: str(row.total) for key, row in ROWS.items()}
        assert totals == {
            "cvbench/base": "31.38",
            "cvbench/sft": "57.84",
            "cvbench/grpo": "59.47",
            "cvbench/cold_start_grpo": "70.58",
            "cvbench/instruct": "55.64",
            "cvbench/instruct_grpo_table_4": "66.03",
            "cvbench/instruct_grpo_table_5": "63.57",
            "cvbench/instruct_grpo_freeze_vision": "68.34",
            "cvbench/instruct_grpo_freeze_llm": "65.35",
            "cvbench/gpg": "76.15",
            "cvbench/gpg_earlier": "69.11",
            "cvbench/reproduced_grpo": "58.4",
            "cvbench/reproduced_instruct": "61.6",
            "blink/base": "6.74",
            "blink/sft": "52.43",
            "blink/grpo": "53.18",
            "vsr/base": "0.0",
            "vsr/sft": "35.80",
            "vsr/grpo": "62.32",
        }

    def test_the_papers_evaluator_is_the_reference_scorer(self):
        assert {row.scorer for row in ROWS.values()} == {"reference"}

    def test_each_row_says_where_it_is_from(self):
        for row in ROWS.values():
            assert row.source.url.startswith("https://") and re.fullmatch(r"20\d\d-\d\d-\d\d", row.source.date)

    @pytest.mark.parametrize("key", [key for key, row in ROWS.items() if row.categories])
    def test_one_number_of_right_answers_fits_each_printed_value(self, key):
        row = ROWS[key]
        assert [len(counts) for counts in (*row.counts.values(), row.total_counts)] == [1] * (len(row.counts) + 1)

    def test_only_two_rows_do_not_add_up(self):
        with_categories = [row for row in ROWS.values() if row.categories]
        assert len(with_categories) == 13
        assert [row.key for row in with_categories if row.discrepancies] == ["cvbench/base", "blink/grpo"]
        for row in with_categories:
            if not row.discrepancies:
                assert row.summed_counts == row.total_counts
                assert row.recomputed_total == pytest.approx(float(row.total), abs=0.01)

    def test_the_base_row_pools_to_29_11_and_says_so(self):
        row = ROWS["cvbench/base"]
        assert row.recomputed_total == pytest.approx(29.11, abs=0.005)
        assert row.discrepancies == (
            "the printed total 31.38 is 828 of 2,638 items; the categories add up to 768, which is 29.11",
        )

    def test_the_blink_row_of_grpo_pools_to_53_56(self):
        row = ROWS["blink/grpo"]
        assert row.counts == {"Relative_Depth": (63,), "Spatial_Relation": (80,)}
        assert row.recomputed_total == pytest.approx(100 * 143 / 267)
        assert "53.18 is 142 of 267 items; the categories add up to 143, which is 53.56" in row.discrepancies[0]

    def test_vsr_fits_the_random_split_and_not_the_zero_shot_one(self):
        trained = [ROWS["vsr/sft"].total, ROWS["vsr/grpo"].total]
        assert [counts_printed_as(value, 2195) for value in trained] == [(786,), (1368,)]
        assert [counts_printed_as(value, size) for value in trained for size in (616, 1222)] == [()] * 4


class TestInterval:
    def test_it_is_wilsons_of_the_right_answers(self):
        assert ROWS["cvbench/grpo"].interval() == wilson(1569, 2638)
        assert ROWS["cvbench/grpo"].interval("Depth") == wilson(325, 600)
        assert ROWS["cvbench/grpo"].interval(level=0.5) == wilson(1569, 2638, 0.5)

    def test_it_covers_every_number_that_fits(self):
        interval = ROWS["cvbench/reproduced_grpo"].interval()
        assert interval.estimate == pytest.approx(0.584)
        assert (interval.low, interval.high) == (wilson(1540, 2638).low, wilson(1543, 2638).high)

    def test_it_covers_both_totals_where_they_disagree(self):
        interval = ROWS["cvbench/base"].interval()
        assert interval.estimate == pytest.approx(0.3138)
        assert (interval.low, interval.high) == (wilson(768, 2638).low, wilson(828, 2638).high)


class TestCounterparts:
    @pytest.mark.parametrize(
        ("model", "method", "freeze", "keys"),
        [
            ("base", "eval", "nothing", ["base"]),
            ("base", "grpo", "nothing", ["grpo", "reproduced_grpo"]),
            ("base", "sft_reference", "nothing", ["sft"]),
            ("base", "gpg", "nothing", ["gpg", "gpg_earlier"]),
            ("instruct", "eval", "nothing", ["instruct", "reproduced_instruct"]),
            ("instruct", "grpo", "nothing", ["instruct_grpo_table_4", "instruct_grpo_table_5"]),
            ("instruct", "grpo", "vision", ["instruct_grpo_freeze_vision"]),
            ("instruct", "grpo", "llm", ["instruct_grpo_freeze_llm"]),
            ("base", "grpo", "vision", []),
            ("base", "dapo", "nothing", []),
        ],
    )
    def test_a_run_finds_the_rows_of_its_model_and_training(self, model, method, freeze, keys):
        path = {"base": "Qwen/Qwen2-VL-2B", "instruct": "Qwen/Qwen2-VL-2B-Instruct"}[model]
        found = published().counterparts("cvbench", model=path, style=model, method=method, freeze=freeze)
        assert [row.key for row in found] == [f"cvbench/{key}" for key in keys]

    def test_an_adapter_and_another_model_have_none(self):
        known = {"model": "Qwen/Qwen2-VL-2B", "style": "base", "method": "grpo"}
        assert published().counterparts("cvbench", **known)
        for change in ({"adapter": "lora"}, {"model": "models/seed0/nano-base"}, {"style": "instruct"}):
            assert not published().counterparts("cvbench", **{**known, **change})

    def test_a_local_copy_counts_by_its_name(self):
        found = published().counterparts("vsr", model="/copies/Qwen2-VL-2B/", style="base", method="eval")
        assert [row.key for row in found] == ["vsr/base"]

    def test_each_recipe_is_one_that_a_run_can_have(self):
        conf = Path(__file__).resolve().parents[2] / "conf"
        groups = {group: {path.stem for path in (conf / group).glob("*.yaml")} for group in ("freeze", "adapter")}
        for row in ROWS.values():
            assert row.recipe.style in ("base", "instruct")
            assert row.recipe.freeze in groups["freeze"] and row.recipe.adapter in groups["adapter"]

    def test_the_papers_own_rows_come_first(self):
        kinds = [row.kind for row in published().on("cvbench")]
        assert kinds == ["paper"] * 9 + ["follow-up"] * 2 + ["reproduction"] * 2
        assert not published().on("spatial")


class TestBadData:
    """A file of rows with one mistake in it says which entry is wrong and why, in one line."""

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda data: data["rows"][2].update(total="59.46"), r"cvbench/grpo: total: no number .* 2638 .* 59\.46"),
            (
                lambda data: data["rows"][2]["categories"].update(Depth="54.19"),
                r"cvbench/grpo: Depth: .* 600 .* 54\.19",
            ),
            (lambda data: data["rows"][2].update(total=59.47), r"cvbench/grpo: 59\.47 is no percentage; .* in quotes"),
            (lambda data: data["rows"][2].update(total="159.47"), "cvbench/grpo: '159.47' is no percentage"),
            (lambda data: data["rows"][2]["categories"].pop("Depth"), "cvbench/grpo: its categories are"),
            (
                lambda data: data["rows"][2].update(kind="rumour"),
                "cvbench/grpo: kind is 'rumour', expected one of paper",
            ),
            (lambda data: data["rows"][2].update(seeds=None), "cvbench/grpo: seeds is None"),
            (lambda data: data["rows"][2].update(benchmark="cvbanch"), "cvbench/grpo: 'cvbanch' is not there"),
            (lambda data: data["rows"][2]["notes"].append("sft_gup"), "cvbench/grpo: 'sft_gup' is not there"),
            (lambda data: data["rows"][2].pop("training"), "cvbench/grpo: .*missing.*'training'"),
            (lambda data: data["rows"][2].update(trainer="trl"), "cvbench/grpo: .*unexpected.*'trainer'"),
            (lambda data: data["rows"].append(data["rows"][2]), "cvbench/grpo: is there twice"),
            (lambda data: data["benchmarks"]["blink"].update(num_items=268), "benchmark blink: .* 267 items, not 268"),
            (lambda data: data["sources"]["table_3"].pop("url"), "source table_3: .*missing.*'url'"),
        ],
    )
    def test_it_is_refused(self, change, message, tmp_path):
        data = yaml.safe_load(DATA.read_text(encoding="utf-8"))
        change(data)
        (tmp_path / "rows.yaml").write_text(yaml.safe_dump(data))
        with pytest.raises(ValueError, match=f"^rows.yaml, (row )?{message}") as error:
            load_published(tmp_path / "rows.yaml")
        assert "\n" not in str(error.value)

    def test_what_is_written_again_is_read_again(self, tmp_path):
        (tmp_path / "rows.yaml").write_text(yaml.safe_dump(yaml.safe_load(DATA.read_text(encoding="utf-8"))))
        assert load_published(tmp_path / "rows.yaml") == published()


class TestTable:
    def test_a_row_has_its_interval_its_categories_and_what_they_add_up_to(self, capsys):
        assert main(["published"]) == 0
        lines = capsys.readouterr().out.splitlines()
        (base,) = [line for line in lines if line.startswith("base  ")]
        (gpg,) = [line for line in lines if line.startswith("base + GPG  ")]
        cells = ["31.38 [27.4, 33.2]", "54.69", "22.46", "0.16", "31.66", "29.11 !", "paper", "a", "1, 2, 3, 4"]
        assert re.split(r" {2,}", base)[1:] == cells
        assert re.split(r" {2,}", gpg)[1:6] == ["76.15 [74.5, 77.7]", "66.62", "83.23", "81.66", "75.50"]
        assert lines[0] == "CV-Bench: 2,638 items (Count 788, Relation 650, Depth 600, Distance 600)"
        numbered = "1 The printed total 31.38 is 828 of 2,638 items; the categories add up to 768, which is 29.11."
        assert numbered in [line.strip() for line in lines]

    @pytest.mark.parametrize("benchmark", published().benchmarks)
    def test_every_note_and_source_of_a_benchmark_is_there_once(self, benchmark):
        text = published_table(benchmark)
        words = " ".join(text.split())
        names = {name for row in published().on(benchmark) for name in row.notes}
        for name in names | set(published().benchmarks[benchmark].notes):
            assert words.count(NOTES[name]) == 1
        for source in {row.source for row in published().on(benchmark)}:
            assert text.count(f"{source.where}, {source.date}") == 1

    def test_a_number_at_a_row_leads_to_its_note(self):
        numbers = note_numbers("blink")
        assert markers(ROWS["blink/grpo"], numbers).split(", ")[-1] == str(numbers[NOTES["blink_gain"]])
        assert sorted(numbers.values()) == list(range(1, len(numbers) + 1))

    def test_a_benchmark_without_rows_is_one_line(self, capsys):
        assert main(["published", "--benchmark", "spatial"]) == 2
        message = "visual-r1: nothing is published on benchmark 'spatial': choose from cvbench, blink, vsr\n"
        assert capsys.readouterr().err == message


def figures_of_notes() -> dict[str, list[Any]]:
    """For each note, the figures in it that follow from the rows, computed here."""
    half = ROWS["cvbench/grpo"].interval()
    cut = [row for row in ROWS.values() if row.benchmark.name == "cvbench" and row.categories]
    summed = sum(right("cvbench/base", category) for category in ROWS["cvbench/base"].categories)
    missing = right("cvbench/base") - summed
    instruct, table_4, table_5 = (f"cvbench/instruct{end}" for end in ("", "_grpo_table_4", "_grpo_table_5"))
    frozen = {part: f"cvbench/instruct_grpo_freeze_{part}" for part in ("vision", "llm")}

    def restored(category: str) -> str:
        """What the category's value would be with the missing items in it, cut off as its table does."""
        n = ROWS["cvbench/base"].benchmark.categories[category]
        return f"{(10_000 * (right('cvbench/base', category) + missing) // n) / 100:.2f}"

    def gap(first: str, second: str) -> list[str]:
        return [f"{abs(right(first) - right(second))}", f"{z_between(first, second):.1f}"]

    return {
        "half_width": [printed("cvbench/grpo"), "2,638", f"{50 * (half.high - half.low):.1f}"],
        "decimals": [sum(row.adds_up for row in cut), len(cut)],
        "vsr_items": [
            f"{ROWS['vsr/grpo'].benchmark.num_items:,}",
            *(printed(key) for key in ("vsr/sft", "vsr/grpo")),
            *(f"{right(key):,}" for key in ("vsr/sft", "vsr/grpo")),
            *("616", "1,222"),
        ],
        "base_digit": [
            *(missing, restored("Depth"), printed("cvbench/base", "Depth")),
            *(restored("Distance"), printed("cvbench/base", "Distance")),
        ],
        "base_gap": [
            30,
            printed("cvbench/grpo") - printed("cvbench/base"),
            f"{100 * (right('cvbench/grpo') - summed) / 2638:.2f}",
        ],
        "base_format": [*(printed("cvbench/base", category) for category in ("Depth", "Distance")), 50],
        "sft_gap": [
            right("cvbench/grpo") - right("cvbench/sft"),
            "2,638",
            printed("cvbench/grpo") - printed("cvbench/sft"),
            f"{z_between('cvbench/grpo', 'cvbench/sft'):.1f}",
        ],
        "grpo_chance": [
            *(printed("cvbench/grpo", category) for category in ("Depth", "Distance")),
            *(f"{z_from_coin('cvbench/grpo', category):.1f}" for category in ("Depth", "Distance")),
        ],
        "sft_chance": [
            *(printed("cvbench/sft", category) for category in ("Depth", "Distance")),
            *(f"{z_from_coin('cvbench/sft', category):.1f}" for category in ("Depth", "Distance")),
        ],
        "instruct_gap": [5, printed("cvbench/grpo") - printed(instruct)],
        "two_numbers": [printed(table_4), printed(table_5), *gap(table_4, table_5)],
        "freeze_vision_gap": [*gap(frozen["vision"], table_5), *gap(frozen["vision"], table_4)],
        "freeze_llm_gap": [*gap(frozen["llm"], table_5), *gap(frozen["llm"], table_4)],
        "gpg_rollouts": ["0.4", 20],
        "gpg_two_numbers": [
            printed("cvbench/gpg_earlier"),
            printed("cvbench/gpg"),
            *gap("cvbench/gpg", "cvbench/gpg_earlier"),
        ],
        "blink_gain": [
            27,
            printed("blink/grpo") - printed("blink/sft"),
            right("blink/grpo") - right("blink/sft"),
            *(printed(key, "Relative_Depth") for key in ("blink/sft", "blink/grpo")),
        ],
        "vsr_gain": [27, printed("vsr/grpo") - printed("vsr/sft")],
        "vsr_format": [50, *(printed(key) for key in ("vsr/base", "vsr/sft"))],
        "reproduction_grpo": [
            1000,
            f"{z_between('cvbench/reproduced_grpo', 'cvbench/grpo'):.1f}",
            printed("cvbench/grpo"),
            "63.5",
            printed(table_5),
        ],
        "reproduction_instruct": [printed(instruct), f"{z_between('cvbench/reproduced_instruct', instruct):.1f}"],
        "evaluator": ["1,024"],
    }


class TestNotes:
    FIGURES = figures_of_notes()

    @pytest.mark.parametrize("name", NOTES)
    def test_every_figure_in_a_note_is_computed(self, name):
        text = re.sub(r"(Tables?|Figure) \d( and \d)?|\d+ May \d{4}|H20|R1", "", NOTES[name])
        found = sorted(re.findall(r"\d[\d,]*(?:\.\d+)?(?<!,)", text))
        assert sorted(set(found)) == sorted({str(figure) for figure in self.FIGURES.get(name, [])})

    def test_every_note_stands_at_a_row_or_a_benchmark(self):
        used = {name for row in ROWS.values() for name in row.notes}
        used |= {name for benchmark in published().benchmarks.values() for name in benchmark.notes}
        assert used == set(NOTES) and set(self.FIGURES) <= used
