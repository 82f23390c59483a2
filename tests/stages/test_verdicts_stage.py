"""What a stage does with answers that say no verdict, with calls that fail, and with labels that are made anew."""

from __future__ import annotations

import json
import math

import pytest
from local_server import LocalServer

from rlaif.errors import UserError
from rlaif.io import read_jsonl, stable_uniform

SOURCES = ["sft", "sample"]


def words(server: LocalServer, *more: str) -> tuple[str, ...]:
    return (
        "labeler=detailed",
        "backend=openai",
        f"backend.base_url={server.base_url}",
        "backend.name=toy-model",
        "backend.api=chat",
        "backend.max_retries=0",
        *more,
    )


def verdict(prompt: str) -> dict[str, float]:
    p = 0.05 + 0.8 * stable_uniform(prompt)
    return {"1": p, "2": 0.9 - p, "~": 0.1}


def turned(prompt: str) -> dict[str, float]:
    p = verdict(prompt)
    return p | {"1": p["2"], "2": p["1"]}


def sentence_begins(prompt: str) -> dict[str, float]:
    return {"The": 0.97, "~": 0.024, "1": 0.002, "2": 0.004}


def test_a_model_that_begins_a_sentence_stops_the_stage_with_the_cause(run, copied_root):
    root = copied_root(SOURCES)
    with LocalServer({"top_k"}, distribution=sentence_begins) as server, pytest.raises(UserError) as caught:
        run("stage=label", *words(server), root=root)
    said = str(caught.value)
    assert said.startswith("100.0% of the labeler's judgements could not be read")
    for part in (
        "labeler.max_unparsed=0.1",
        "labeler.min_mass=0.5",
        "0.60%",
        "backend.api=completions",
        "labeler.readout.kind=text",
        "labeler.retry=unparsed",
    ):
        assert part in said
    assert not list((root / "artifacts").glob("label-*"))


@pytest.mark.parametrize("distribution, right", [(sentence_begins, False), (verdict, True)])
def test_the_doctor_is_not_content_with_a_tail(run, pipeline, capsys, distribution, right):
    with LocalServer({"top_k"}, distribution=distribution) as server:
        ask = ("stage=doctor", *words(server), "doctor.injection_pairs=0")
        if right:
            run(*ask)
        else:
            with pytest.raises(UserError, match="doctor: labeler's choices failed"):
                run(*ask)
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert ("ok labeler's choices 90.0%" in told) is right
    assert ("no labeler's choices 0.6%" in told) is not right
    assert right or ("labeler.min_mass=0.5" in told and "labeler.readout.kind=text" in told)


def test_failed_calls_are_told_apart_with_the_servers_own_words(run, copied_root, capsys):
    root = copied_root(SOURCES)
    with LocalServer({"top_k"}, distribution=verdict) as server:
        server.faults["summary 1"] = [400] * 4
        record = run("stage=label", *words(server), root=root)
        shown = capsys.readouterr().out
        failed, unparsed = (record.summary[f"label/{name}_rate"] for name in ("failed", "unparsed"))
        assert failed > 0 and unparsed == 0.0
        assert "failed calls" in shown and "labeler.retry=failed" in shown
        again = run("stage=label", *words(server), "labeler.retry=failed", root=root)
        assert again.lineage[0].digest == record.lineage[0].digest
        assert again.summary["label/failed_rate"] == 0.0 and again.summary["label/asked_again"] == 4
        assert "asked again" in capsys.readouterr().out

        server.faults["summary 1"] = [400] * 200
        with pytest.raises(UserError, match=r"% of the labeler's judgements failed.* x: .*status 400"):
            run("stage=label", *words(server), "labeler.retry=all", root=root)


def test_labels_made_anew_make_what_was_built_on_them_anew(run, copied_root):
    root = copied_root(SOURCES)
    with LocalServer({"top_k"}, distribution=verdict) as server:
        first = run("stage=rm", *words(server), root=root)
        rows = {row.kind: row for row in first.lineage}
        server.distribution = turned
        kept = run("stage=rm", *words(server), "force=true", root=root)
        assert kept.summary["label/alignment"] == first.summary["label/alignment"]
        label = run("stage=label", *words(server), "labeler.retry=all", root=root)
        assert label.summary["label/asked_again"] > 20
        assert label.lineage[0].digest == rows["label"].digest
        asked = len(server.asked("/v1/chat/completions"))
        anew = run("stage=rm", *words(server), root=root)
        found = {row.kind: row for row in anew.lineage}
        assert found["rm"].digest == rows["rm"].digest and not found["rm"].reused
        assert found["label"].reused and len(server.asked("/v1/chat/completions")) == asked
        assert anew.summary["rm/ece"] != first.summary["rm/ece"]
        again = run("stage=rm", *words(server), root=root)
        assert all(row.reused for row in again.lineage)


def test_every_file_is_strict_json_where_a_probability_is_zero(run, copied_root):
    root = copied_root(SOURCES)

    class Zero(LocalServer):
        def _top(self, body, found):
            return {
                piece: (value if piece != "2" else -math.inf)
                for piece, value in super()._top(body, found).items()
            }

    with Zero({"top_k"}, distribution=verdict) as server:
        run("stage=label", *words(server, "labeler.min_mass=0"), root=root)
    files = [*(root / "artifacts").rglob("*.json*"), *(root / "runs").rglob("*.json*")]
    assert len(files) > 10
    for file in files:
        for text in file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            json.loads(text, parse_constant=lambda name, at=file: pytest.fail(f"{name} in {at}"))
    (judgements,) = (root / "artifacts").glob("label-*/judgements.jsonl")
    told = [row["logprobs"] for row in read_jsonl(judgements) if row["provenance"] != "rule"]
    assert told and all(second is None and math.isfinite(first) for first, second in told)


@pytest.mark.parametrize("value", ["sometimes", "0"])
def test_a_retry_that_is_none_is_refused(run, pipeline, value):
    with pytest.raises(
        UserError, match=f"labeler.retry={value} is not known: write unparsed, failed, all or null"
    ):
        run("stage=label", "labeler=scripted", f"labeler.retry={value}")


@pytest.mark.parametrize("value", ["-0.1", "1.5", "null", "true"])
def test_a_min_mass_out_of_range_is_refused(run, pipeline, value):
    with pytest.raises(UserError, match="labeler.min_mass"):
        run("stage=label", "labeler=scripted", f"labeler.min_mass={value}")


def test_min_mass_is_for_servers_also_under_the_smoke_profile(context):
    assert context("labeler=base").options.labeler.min_mass == 0.0
    hosted = (
        "backend=openai",
        "backend.base_url=http://127.0.0.1:1/v1",
        "backend.name=x",
        "backend.api=chat",
    )
    assert context("labeler=base", *hosted).options.labeler.min_mass == 0.5
    assert context("labeler=scripted").options.labeler.min_mass == 0.5
