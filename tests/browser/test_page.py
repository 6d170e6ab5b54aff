"""A report as its reader has it: opened from disk, looked at, filtered, and read by keyboard."""

from __future__ import annotations

import pytest

from tests.browser.conftest import HOSTILE, SCREENSHOTS


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_from_disk_and_fits_the_screen(visit, width, scheme):
    page = visit(width=width, scheme=scheme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("html").get_attribute("data-theme") == scheme
    assert page.locator(".chart .main-svg").count() > 20
    # What sticks out of a box that cannot be scrolled cannot be read.
    assert (
        page.evaluate(
            "[...document.querySelectorAll('h1, h2, h3, p, li, select, button, input, img, .chart, .card')]"
            ".filter((node) => node.offsetParent && !node.closest('.table')"
            " && node.getBoundingClientRect().right > innerWidth + 1).map((node) => node.outerHTML.slice(0, 80))"
        )
        == []
    )


def test_what_runs_have_written_is_text(visit):
    page = visit()
    page.locator("#run").select_option(label="evil<script>window.hacked=1<!--{{data}} seed 0")
    assert HOSTILE.split(" Wait")[0] in page.locator("#cards .text").first.inner_text()
    assert page.locator("h1").inner_text().count("<script>") == 1
    assert page.locator("#cards script, #cards .text img").count() == 0


def test_filters_leave_what_they_say(visit):
    page = visit()
    page.locator("#run").select_option(label="better seed 0")
    page.locator("#step").select_option(label="step 0")
    everything = page.locator("#count").inner_text()
    assert everything == "16 completions of 16 questions"
    page.locator("#wrong").check()
    shown = page.locator("#cards .facts b", has_text="right").count(), page.locator("#cards .facts .bad").count()
    assert shown[0] == 0 and 0 < shown[1] < 16
    page.locator("#wrong").uncheck()
    page.locator("#reflects").check()
    cards = page.locator("#cards .card")
    assert 0 < cards.count() < 16 and cards.filter(has=page.locator("mark")).count() == cards.count()
    page.locator("#reflects").uncheck()
    page.locator("#step").select_option(label="step 10")
    page.locator("#changed").check()
    assert (
        page.locator("#cards .card").count() == page.locator("#cards .completion", has_text="changed since").count() > 0
    )
    page.locator("#changed").uncheck()
    page.locator("#find").fill("no completion says this")
    assert page.locator("#count").inner_text() == "0 completions of 0 questions"


def test_longest_first_is_longest_first(visit):
    page = visit()
    page.locator("#step").select_option(label="step 5")
    page.locator("#order").select_option(label="longest first")
    page.locator("#more").click()
    lengths = [int(text.split()[0]) for text in page.locator("#cards .facts span", has_text="tokens").all_inner_texts()]
    assert len(set(lengths)) > 1 and lengths == sorted(lengths, reverse=True)


def test_a_group_of_training_stands_together_with_its_advantages(visit):
    page = visit()
    page.locator("#kind").select_option(label="training")
    card = page.locator("#cards .card").first
    assert card.locator(".completion").count() == 3
    assert "advantage +0.5" in card.inner_text() and "accuracy 1" in card.inner_text()


def test_a_probe_example_is_followed_through_the_steps(visit):
    page = visit()
    page.locator("#run").select_option(label="better seed 0")
    card = page.locator("#cards .card").first
    card.get_by_role("button", name="follow through the steps").click()
    assert [text for text in card.locator(".follow .facts b").all_inner_texts() if text.startswith("step")] == [
        *("step 0", "step 5", "step 10")
    ]


def test_thought_answer_and_tags_are_told_apart_and_images_are_there(visit):
    page = visit()
    page.locator("#run").select_option(label="better seed 0")
    text = page.locator("#cards .text").first
    assert text.locator(".t").first.inner_text().startswith("I see it.")
    assert text.locator(".a").inner_text() in ("(A)", "(B)", "(C)", "(D)")
    assert text.locator(".g").all_inner_texts() == ["</think>", "<answer>", "</answer>"]
    page.locator("#cards img").first.scroll_into_view_if_needed()
    assert page.locator("#cards img").first.evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 112


def test_the_keyboard_reaches_filters_and_reads_charts(visit):
    page = visit()
    page.locator("#chart-accuracy .plot").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("End")
    assert page.locator("#chart-accuracy .read").inner_text().startswith("Step 10: better ")
    assert page.locator("#chart-accuracy .hoverlayer").text_content() != ""
    page.locator("#wrong").focus()
    before = page.locator("#count").inner_text()
    page.keyboard.press("Space")
    assert page.locator("#count").inner_text() != before
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "reflects"
    # Every control can be reached: none is taken out of the order.
    assert page.locator("button[tabindex='-1'], select[tabindex='-1'], input[tabindex='-1']").count() == 0


def test_hovering_shows_the_values_of_all_lines(visit):
    page = visit()
    page.locator("#chart-length").scroll_into_view_if_needed()
    box = page.locator("#chart-length .plot").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 20, box["y"] + box["height"] / 2)
    page.locator("#chart-length .hoverlayer text").first.wait_for()
    text = page.locator("#chart-length .hoverlayer").text_content()
    assert "plain" in text and "better" in text and "[" in text


def test_smoothing_seeds_and_source_change_the_curves(visit):
    page = visit()

    def line():
        return page.locator("#chart-accuracy .lines path.js-line").first.get_attribute("d")

    raw, num_lines = line(), page.locator("#chart-accuracy path.js-line").count()
    page.locator("#smoothing").select_option(label="3 points")
    assert line() != raw
    page.locator("#seeds").check()
    assert page.locator("#chart-accuracy path.js-line").count() > num_lines
    page.locator("#source").select_option(label="training rollouts")
    assert "Not measured on training rollouts." in page.locator("#chart-accuracy").inner_text()
    assert page.locator("#chart-length path.js-line").count() > 0


def test_a_band_stands_behind_every_line_of_several_seeds(visit):
    page = visit()
    assert page.locator("#chart-length path.js-fill").count() == 2


def test_every_chart_has_its_numbers_as_a_table(visit):
    page = visit()
    charts = page.locator(".chart")
    assert charts.count() >= 10
    for index in range(charts.count()):
        chart = charts.nth(index)
        chart.locator("summary").press("Enter")
        chart.locator("thead th").first.wait_for()
        lines = int(chart.get_attribute("data-lines"))
        assert chart.locator("thead th").count() == lines + 1
        assert lines == 0 or chart.locator("tbody tr").count() >= 2
    cells = page.locator("#chart-length tbody tr").first.locator("th, td").all_inner_texts()
    assert cells[0] == "0" and "[" in cells[1]


def test_the_switch_of_colours_holds(visit):
    page = visit(scheme="dark")
    page.get_by_role("button", name="light").click()
    assert page.locator("html").get_attribute("data-theme") == "light"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(252, 252, 251)"


def test_lines_beyond_the_eighth_differ_in_their_mark_where_the_colour_comes_again(visit):
    page = visit()
    looks = page.evaluate(
        """() => {
          data.entries = Array.from({ length: 12 }, (_, index) => ({ ...data.entries[0], label: `run ${index}` }));
          data.curves["probe/accuracy"] = data.entries.map(() => data.curves["probe/accuracy"][0]);
          legend();
          drawCharts();
          const paths = [...document.querySelectorAll("#legend path")];
          const inLegend = paths.map((node) => node.getAttribute("fill") + node.getAttribute("d"));
          const drawn = document.querySelector("#chart-accuracy .plot").data;
          const lines = drawn.filter((trace) => trace.text && trace.line.width > 2);
          return [inLegend, lines.map((trace) => trace.line.color + trace.marker.symbol)];
        }"""
    )
    assert [len(one) for one in looks] == [12, 12] and [len(set(one)) for one in looks] == [12, 12]


def test_smoothing_changes_all_that_is_read_of_a_line_but_not_its_table(visit):
    page = visit()
    chart = page.locator("#chart-length")

    def read():
        chart.locator(".plot").focus()
        page.keyboard.press("Home")
        return chart.locator(".read").inner_text()

    def hover():
        return page.evaluate("document.querySelector('#chart-length .plot').data.filter((one) => one.text)[0].text[0]")

    def cell():
        return chart.locator("tbody td").first.inner_text()

    chart.locator("summary").press("Enter")
    chart.locator("tbody td").first.wait_for()
    raw = cell()
    assert hover() == raw and f"{raw};" in read() and "mean of" not in read()
    page.locator("#smoothing").select_option(label="3 points")
    ends, raw_ends = ([float(one) for one in text.split(" [")[1].strip("]").split(", ")] for text in (hover(), raw))
    assert ends != raw_ends
    assert f"{hover()};" in read() and read().startswith("Step 0, mean of 3 points: ")
    assert cell() == raw and chart.locator("summary").inner_text() == "as a table, not smoothed"


def test_a_broken_line_says_where_its_band_is(visit):
    page = visit()
    assert "Bands of the broken lines: in the values and the table." in page.locator("#chart-by_outcome").inner_text()
    assert "broken" not in page.locator("#chart-length").inner_text()


def test_phrases_have_small_charts_and_one_table(visit):
    page = visit(width=360)
    charts = page.locator("#phrases .chart")
    assert charts.locator("h3").all_inner_texts() == ["“let me check” %", "“wait” %"]
    assert charts.locator(".main-svg").count() >= 2 and charts.first.bounding_box()["width"] <= 336
    table = page.get_by_role("table", name="All phrases that were said")
    assert table.locator("tbody th").all_inner_texts() == ["let me check", "wait"]


@pytest.mark.parametrize("width", [360, 1600])
def test_a_text_without_an_end_and_without_an_image_keeps_its_place(visit, width):
    page = visit(width=width)
    page.locator("#run").select_option(label="日本語 عربى 🙂 seed 0")
    card = page.locator("#cards .card").first
    assert "𝔚𝔞𝔦𝔱" in card.inner_text() and "no image in this file" in card.inner_text()
    assert "images of rollouts" in page.locator("#left-out").inner_text()
    card.get_by_role("button", name="follow through the steps").click()
    texts = card.locator(".text")
    assert texts.count() == 4
    boxes = [texts.nth(index).bounding_box() for index in range(4)]
    assert all(box["height"] < 500 and box["x"] + box["width"] <= width for box in boxes)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    texts.first.focus()
    page.keyboard.press("End")
    for _ in range(100):  # the page's policy forbids to wait by an expression
        if page.evaluate("document.activeElement.scrollTop") > 0:
            break
        page.wait_for_timeout(50)
    assert page.evaluate("document.activeElement.scrollTop") > 0
