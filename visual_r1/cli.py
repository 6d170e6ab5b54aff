"""``visual-r1``: everything that is not a run. Each command imports what it needs when it is called."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from visual_r1.sweeps.processes import end_with_parent

USER_ERROR = 2
_MAX_SHOWN = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code.

    A user's mistake is one line on stderr and exit code 2, not a traceback; 1 says that a check found something wrong.
    """
    options = _parse(arguments)
    end_with_parent()
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # as `visual-r1 ... | head`, which has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    # What our own checks and the file system raise; a fault of the program keeps its traceback.
    except (ValueError, OSError) as error:
        print(f"visual-r1: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return code or 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes overrides from one place only, and gives back those that stand after another option.
    are_overrides = "overrides" in options and all("=" in word and not word.startswith("-") for word in rest)
    if rest and not are_overrides:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="visual-r1",
        description="R1-Zero-style reinforcement learning of vision-language models. To train: run.py.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    organism = commands.add_parser("organism", help="the small model that ships with the project").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    trunk = organism.add_parser("trunk", help="what nano-base learns before the first dialogue, as OUT/nano-trunk")
    build = organism.add_parser("build", help="make OUT/nano-base and OUT/nano-instruct from nothing, in 20 minutes")
    for command, run in ((trunk, _organism_trunk), (build, _organism_build)):
        command.add_argument("out", type=Path, metavar="OUT", help="folder for the checkpoints")
        command.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the recipe: mixture.careful=0.04")
        command.add_argument("--organism", choices=("nano", "micro"), default="nano", help="default: %(default)s")
        command.add_argument("--seed", type=int, default=0, help="of initialisation and data (default: %(default)s)")
        command.add_argument("--threads", type=_positive, default=1, help="CPU threads (default: %(default)s)")
        command.add_argument("--device", default="cpu", help="as torch names it: cuda (default: %(default)s)")
        command.set_defaults(command=run)
    build.add_argument("--trunk", type=Path, help="branch from this nano-trunk, of the same seed and recipe")
    build.add_argument("--base-only", action="store_true", help="no nano-instruct")
    card = organism.add_parser("card", help="measure what an organism can do, and write it into its folder")
    card.add_argument("folder", type=Path, metavar="FOLDER", help="of nano-base or nano-instruct")
    card.add_argument("-n", "--num", type=_positive, default=800, help="questions, greedily (default: %(default)s)")
    card.add_argument(
        "--repeated", type=_positive, default=200, help="questions of them at temperature 1 (default: %(default)s)"
    )
    card.add_argument("--repeats", type=_positive, default=16, help="completions of each (default: %(default)s)")
    card.set_defaults(command=_organism_card)

    data = commands.add_parser("data", help="look at a data set").add_subparsers(
        title="commands", required=True, metavar="COMMAND"
    )
    show = data.add_parser("show", help="write examples as a picture")
    show.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as run.py takes them: dataset=spatial")
    show.add_argument("-n", "--num", type=_positive, default=16, help="how many examples (default: %(default)s)")
    show.add_argument("-o", "--out", type=Path, default=Path("sheet.png"), help="the picture (default: %(default)s)")
    show.add_argument("--split", choices=("train", "probe"), default="train", help="default: %(default)s")
    show.set_defaults(command=_data_show)
    check = data.add_parser("check", help="read every row of train, probe and benchmark, and name the bad ones")
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as run.py takes them: dataset=sat")
    check.add_argument("-o", "--out", type=Path, help="a file for all bad rows; without it the first ones are shown")
    check.set_defaults(command=_data_check)

    smoke = commands.add_parser("smoke", help="a first look at a new dataset, model or method: prompts and answers")
    smoke.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as run.py takes them: dataset=spatial")
    smoke.set_defaults(command=_smoke)

    server = commands.add_parser("rollout-server", help="start vLLM's server for a run with rollout=vllm_server")
    server.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="those of the run: rollout=vllm_server")
    server.set_defaults(command=_rollout_server)

    doctor = commands.add_parser("doctor", help="what this machine can do, and whether a run would fit")
    doctor.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as run.py takes them: scale=gpu")
    doctor.add_argument("--json", action="store_true", help="for programs: an array of {name, status, text, fix}")
    doctor.set_defaults(command=_doctor)

    figure = commands.add_parser("figure", help="draw a run's curves again, and print its table")
    figure.add_argument("run", type=Path, help="a run folder: runs/NAME/seed0")
    figure.set_defaults(command=_figure)

    report = commands.add_parser("report", help="what runs show together: tables, curves, rollouts, in one file")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="runs/NAME/seed0, or runs/NAME for all seeds")
    report.add_argument("-o", "--out", type=Path, help="the file (default: report.html; md and csv are printed)")
    report.add_argument("--format", choices=("html", "md", "csv"), help="default: by the file's ending, or html")
    report.set_defaults(command=_report)

    track = commands.add_parser("track", help="show runs in W&B or TensorBoard from their record")
    track.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder: runs/NAME/seed0")
    track.add_argument("--tracker", default="offline", help="as run.py takes it: wandb (default: %(default)s)")
    track.add_argument("--project", help="of W&B (default: that of conf/tracker)")
    track.add_argument("--entity", help="W&B's user or team (default: your own)")
    track.add_argument("--timeout", type=_positive, help="seconds for each row and for the end, where it uploads")
    track.set_defaults(command=_track)

    dashboard = commands.add_parser("dashboard", help="make the W&B workspace of all curves, or bring it up to date")
    dashboard.add_argument("--project", default="visual-r1", help="default: %(default)s")
    dashboard.add_argument("--entity", help="W&B's user or team (default: your own)")
    dashboard.add_argument("--name", default="aha moment", help="of the workspace (default: %(default)s)")
    dashboard.add_argument("--dry-run", action="store_true", help="print the panels; needs no network and no key")
    dashboard.set_defaults(command=_dashboard)

    score = commands.add_parser("score", help="score responses made elsewhere, as a run scores its own")
    score.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as run.py takes them: benchmark.path=FOLDER")
    score.add_argument(
        "responses",
        type=Path,
        help="lines of {id, response}, the paper's CVBench_result_*.json, or a run's evaluation.parquet",
    )
    score.add_argument("--benchmark", required=True, metavar="NAME", help="as run.py takes it: cvbench")
    score.add_argument("--allow-missing", action="store_true", help="count items without a response as wrong")
    score.add_argument("-o", "--out", type=Path, help="a file for all numbers, as JSON")
    score.set_defaults(command=_score)

    probe = commands.add_parser("probe", help="does reflection decide anything? cuts, forced reflection, other images")
    probe.add_argument("run", type=Path, help="a run folder: runs/NAME/seed0")
    probe.add_argument(
        "--model", action="append", metavar="NAME", help="before, after, a folder or a hub id (default: before, after)"
    )
    probe.add_argument("--step", action="append", type=int, metavar="K", help="the checkpoint after K steps as well")
    probe.add_argument("--examples", type=_positive, default=200, help="of the run's benchmark (default: %(default)s)")
    probe.add_argument("--generations", type=_positive, default=4, help="completions of each (default: %(default)s)")
    probe.add_argument("--seed", type=int, default=0, help="of items and sampling (default: %(default)s)")
    probe.add_argument("--phrase", default=" Wait, let me check again.", help="the doubt put in (default:%(default)s)")
    probe.add_argument(
        "--empty-phrase",
        default=" Wait, let me check again. I see the same thing.",
        help="a doubt that looks at nothing (default:%(default)s)",
    )
    probe.add_argument("--rollout", metavar="NAME", help="transformers or vllm_colocate (default: the run's)")
    probe.add_argument("--saved-only", action="store_true", help="sample nothing: only what the run has saved")
    probe.set_defaults(command=_probe)

    study = commands.add_parser("study", help="run what a claim's study needs, and judge the claim by its intervals")
    study.add_argument(
        "names", nargs="*", metavar="NAME", help="folders with a study.yaml (default: all); KEY=VALUE goes to each run"
    )
    study.add_argument("--experiments", type=Path, default=Path("experiments"), help="default: %(default)s")
    study.add_argument("--runs", type=Path, default=Path("runs/studies"), help="of all studies (default: %(default)s)")
    study.add_argument("--jobs", type=_positive, help="how many run at once (default: one a core)")
    instead = study.add_mutually_exclusive_group()
    instead.add_argument("--judge", action="store_true", help="run nothing, judge what is finished")
    instead.add_argument("--pack", action="store_true", help="write what is finished of NAME into its runs.tar.xz")
    instead.add_argument("--unpack", action="store_true", help="put what is in NAME's runs.tar.xz where runs lie")
    study.set_defaults(command=_study)

    published = commands.add_parser("published", help="what others have reached, with intervals and what to know")
    published.add_argument("--benchmark", default="cvbench", help="cvbench, blink or vsr (default: %(default)s)")
    published.set_defaults(command=_published)
    return parser


def _organism_trunk(options: argparse.Namespace) -> None:
    from visual_r1.organisms.build import ORGANISMS, build_trunk
    from visual_r1.organisms.pretraining import with_changes

    organism = ORGANISMS[options.organism]
    folder = build_trunk(
        options.out,
        seed=options.seed,
        num_threads=options.threads,
        device=options.device,
        recipe=with_changes(organism.recipe, options.overrides),
        organism=organism,
    )
    print(folder)


def _organism_build(options: argparse.Namespace) -> None:
    from visual_r1.organisms.build import ORGANISMS, build
    from visual_r1.organisms.pretraining import with_changes

    organism = ORGANISMS[options.organism]
    folders = build(
        options.out,
        seed=options.seed,
        num_threads=options.threads,
        device=options.device,
        recipe=with_changes(organism.recipe, options.overrides),
        organism=organism,
        trunk=options.trunk,
        with_instruct=not options.base_only,
    )
    for folder in folders:
        print(f"{folder}: next: visual-r1 organism card {folder}")


def _organism_card(options: argparse.Namespace) -> None:
    from visual_r1.config import keyword_lists
    from visual_r1.organism_card import card, page

    contents = card(
        options.folder,
        num_examples=options.num,
        num_repeated=options.repeated,
        repeats=options.repeats,
        phrases=keyword_lists()["default"],
    )
    print(page(contents))


def _data_show(options: argparse.Namespace) -> None:
    if options.out.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ValueError(f"-o {options.out}: expected a name that ends in .png, .jpg or .webp")
    from visual_r1.config import build, compose_config
    from visual_r1.report.sheet import contact_sheet

    examples = build(compose_config(options.overrides).dataset[options.split])
    shown = list(islice(examples, options.num))
    contact_sheet(shown, options.out)
    print(f"{options.out}: {len(shown)} of {len(examples)} examples")


def _data_check(options: argparse.Namespace) -> int:
    from visual_r1.config import build, compose_config
    from visual_r1.datasets.check import check
    from visual_r1.files import write_text

    cfg = compose_config(options.overrides)
    nodes = {
        "dataset.train": cfg.dataset.train,
        "dataset.probe": cfg.dataset.probe,
        "benchmark.examples": cfg.benchmark.examples,
    }
    bad = []
    for name, node in nodes.items():
        # Of a table all rows, however few of them the scale takes, and no stop at the first bad one.
        examples = build(node, **({"bad_rows": "skip", "size": None} if "bad_rows" in node else {}))
        findings = check(examples, name=name)
        bad += [f"{name} {row}" for row in findings.bad]
        print(f"{name}: {node['_target_']}")
        for row in findings.bad[:_MAX_SHOWN]:
            print(f"  bad: {row}")
        if len(findings.bad) > _MAX_SHOWN:
            print(f"  bad: ... and {len(findings.bad) - _MAX_SHOWN:,} more; -o FILE names all of them")
        for line in findings.lines():
            print(f"  {line}")
    if options.out is not None:
        write_text(options.out, "".join(f"{line}\n" for line in bad))
        print(f"{options.out}: {len(bad):,} bad rows")
    return 1 if bad else 0


def _smoke(options: argparse.Namespace) -> None:
    from visual_r1.smoke import smoke

    smoke(options.overrides)


def _doctor(options: argparse.Namespace) -> int:
    os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # before they are loaded: one line a finding
    from visual_r1.doctor import doctor

    return doctor(options.overrides, as_json=options.json)


def _rollout_server(options: argparse.Namespace) -> None:
    """Becomes vLLM's server for the run with these overrides, until it is stopped."""
    from visual_r1.config import ConfigError, build, compose_config
    from visual_r1.models import ModelSource
    from visual_r1.rollout.vllm_server import VllmServerEngine
    from visual_r1.rollout.vllm_server_process import server_command

    cfg = compose_config(options.overrides)
    engine = build(cfg.rollout.engine)
    if not isinstance(engine, VllmServerEngine):
        raise ConfigError(f"rollout={cfg.rollout.name}: has no server; add rollout=vllm_server")
    source = ModelSource(**{str(key): value for key, value in cfg.model.items()})
    command, environment = server_command(engine, source)
    print(f"starting vLLM at {engine.url}: half a minute or more ...", flush=True)
    os.execve(command[0], command, dict(environment))


def _figure(options: argparse.Namespace) -> None:
    from visual_r1.report.figure import figure_of_run
    from visual_r1.report.table import table_of_run
    from visual_r1.run_folder import RunFolder

    folder = RunFolder(options.run)
    folder.read_config()
    figure = figure_of_run(folder)
    if folder.is_finished:
        print(table_of_run(folder))
    elif figure is not None:
        print(f"{folder.path} is not finished; its curves so far: {figure}")
    else:
        raise ValueError(f"{folder.path} has measured nothing yet, so there is nothing to draw")


def _report(options: argparse.Namespace) -> None:
    # A run's data set may be the hub's, and a report must not start to download it.
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    from visual_r1.config import build, keyword_lists, recorded
    from visual_r1.report.write import FORMATS, report

    out = options.out
    kind = options.format or ("html" if out is None else FORMATS.get(out.suffix.lower()))
    if kind is None:
        raise ValueError(f"-o {out}: say what to write, --format html, md or csv, or choose such an ending")
    if out is None and kind == "html":
        out = Path("report.html")
    text = report(
        options.runs,
        out=out,
        format=kind,
        keyword_lists=keyword_lists(),
        examples_of=lambda node: build(recorded(node)),
    )
    print(text if out is None else f"{out}: {len(text.encode()) / 1e6:.1f} MB")


def _track(options: argparse.Namespace) -> int:
    from visual_r1.config import ConfigError, compose_config, resolve_unchecked
    from visual_r1.run_folder import RunFolder
    from visual_r1.tracking import shown_in

    settings = resolve_unchecked(compose_config([f"tracker={options.tracker}"]))["tracker"]
    given = {"project": options.project, "entity": options.entity, "timeout_seconds": options.timeout}
    settings |= {key: value for key, value in given.items() if value is not None}
    failed = False
    for folder in map(RunFolder, options.runs):
        with folder.held():
            trackers = shown_in(settings, folder, name=folder.path.resolve().parent.name, config=folder.read_config())
            if not trackers:
                raise ConfigError(f"--tracker {options.tracker}: shows nothing; expected offline, wandb or tensorboard")
            for tracker in trackers:
                tracker.finish(is_patient=True)
                failed |= tracker.has_failed
                if not tracker.has_failed:
                    print(f"{folder.path}: shown in {tracker.service}")
    return 1 if failed else 0


def _dashboard(options: argparse.Namespace) -> None:
    from visual_r1.dashboard import lines, save

    if options.dry_run:
        print(f"workspace {options.name!r} of project {options.project}, against the step, runs grouped by name")
        print("\n".join(lines()))
    else:
        print(save(project=options.project, entity=options.entity, name=options.name))


def _score(options: argparse.Namespace) -> None:
    from visual_r1.config import build, compose_config
    from visual_r1.evaluation import Report, summarise, with_strict
    from visual_r1.files import read_json, write_json
    from visual_r1.metrics.reflection import Reflection
    from visual_r1.report.table import print_run
    from visual_r1.scoring.reference import Reference
    from visual_r1.scoring.responses import disagreements, read_responses

    cfg = compose_config([f"benchmark={options.benchmark}", *options.overrides])
    # A run's own record says which benchmark its items are from.
    record = options.responses.with_name("evaluation.json")
    if options.responses.suffix == ".parquet" and record.is_file():
        made_on = read_json(record)["benchmark"]
        if made_on != cfg.benchmark.name:
            raise ValueError(f"{options.responses}: a run on {made_on}, so score it with --benchmark {made_on}")
    scorers = {str(name): build(node) for name, node in cfg.benchmark.scorers.items()}
    questions = cfg.benchmark.examples
    # Of a table all rows, however few of them the scale takes.
    moments = read_responses(
        options.responses,
        lambda: build(questions, **({"size": None} if "bad_rows" in questions else {})),
        allow_missing=options.allow_missing,
    )
    reports = {
        when: Report(
            benchmark=cfg.benchmark.name,
            rollouts=responses.rollouts,
            blank_rollouts=responses.blank_rollouts,
            reflection=Reflection(phrases=tuple(cfg.keywords.phrases)),
            scorers=with_strict(scorers),
            knows_lengths=responses.knows_lengths,
        ).summary()
        for when, responses in moments.items()
    }
    after = moments["after"]
    counted = {"num_responses": len(after.rollouts) - len(after.missing), "num_missing": len(after.missing)}
    summary = summarise(reports.get("before"), reports["after"], name=str(options.responses), **counted)
    print_run(summary)
    if after.verdicts is not None:
        summary["disagreements"] = different = disagreements(after, Reference())
        shown = ", ".join(map(str, different[:_MAX_SHOWN])) + (", ..." if len(different) > _MAX_SHOWN else "")
        print(
            f"The file's own verdicts differ from the reference rule on {len(different)} of {len(after.verdicts)} items"
            + (f": {shown}" if different else "")
        )
    if options.out is not None:
        write_json(options.out, summary)
        print(f"all numbers: {options.out}")


def _probe(options: argparse.Namespace) -> None:
    from visual_r1.reflection_probe import Options, probe

    probe(
        Options(
            run=options.run,
            models=tuple(options.model or ()),
            steps=tuple(options.step or ()),
            num_examples=options.examples,
            num_generations=options.generations,
            seed=options.seed,
            phrase=options.phrase,
            empty_phrase=options.empty_phrase,
            rollout=options.rollout,
            saved_only=options.saved_only,
            command=shlex.join(["visual-r1", *(sys.argv[1:])]),
        )
    )


def _study(options: argparse.Namespace) -> int:
    from visual_r1.studies.conduct import conduct
    from visual_r1.studies.running import cores

    if options.pack or options.unpack:
        return _study_records(options)
    return conduct(
        [word for word in options.names if "=" not in word],
        experiments=options.experiments,
        runs=options.runs,
        jobs=options.jobs or cores(),
        overrides=[word for word in options.names if "=" in word],
        command=shlex.join(["visual-r1", *sys.argv[1:]]),
        judges_alone=options.judge,
    )


def _study_records(options: argparse.Namespace) -> int:
    from visual_r1.studies import records
    from visual_r1.studies.study import load

    if not options.names:
        raise ValueError(
            "study --pack, --unpack: say of which study, as `visual-r1 study when-reflection-rises --unpack`"
        )
    for name in options.names:
        study, archive = load(options.experiments / name), options.experiments / name / records.ARCHIVE
        if options.pack:
            number = records.pack(study, runs=options.runs, archive=archive)
            print(f"{archive}: {number} of {len(study.cells) * len(study.seeds)} runs")
        else:
            print(f"{options.runs}: {len(records.unpack(archive, runs=options.runs))} folders that were not there")
    return 0


def _published(options: argparse.Namespace) -> None:
    from visual_r1.report.published_table import published_table

    print(published_table(options.benchmark))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
