"""Several students in one program, and one student on several devices."""

import dataclasses

import jax
import numpy as np

from benchmarking.pair import Pair, compare, outcome, stepping
from benchmarking.timing import Row, Subject, figure, for_accelerators, of_samples, turns
from kdjax.training.replicas import join, replicated, take

COUNT = 5
WITHIN = 1.15  # of the ideal
SIZES = (1, 2, 4, 8)


def replicas(pair: Pair) -> list[Row]:
    """Five students with one pass of the teacher beside five runs, and beside what that could save at best."""
    singles = [outcome(*pair.live(pair.state(seed), pair.variables, pair.batch)) for seed in range(COUNT)]
    fresh = lambda: pair.runner.place(join([pair.state(seed) for seed in range(COUNT)]))
    subjects = [
        stepping("single", pair.live, pair.state(), pair.variables, pair.batch),
        Subject("teacher", lambda: pair.forward(pair.variables, pair.inputs)),
    ]
    differences = {}
    for form in ("unrolled", "vmapped"):
        step = pair.runner.compile(replicated(pair.step(), COUNT, form))
        state, metrics = step(fresh(), pair.variables, pair.batch)
        found = [outcome(take(state, i), take(metrics, i)) for i in range(COUNT)]
        each = [compare(found[i], singles[i], pair.state(i)) for i in range(COUNT)]
        differences[form] = max(each, key=lambda d: np.nan_to_num(max(d.update, d.loss), nan=np.inf))
        subjects.append(stepping(form, step, fresh(), pair.variables, pair.batch))
    seconds = turns(subjects, pair.setting.rounds)
    share = seconds["teacher"] / seconds["single"]
    ideal = float(np.median((share + COUNT * (1 - share)) / COUNT))
    rows, best = [], min(("unrolled", "vmapped"), key=lambda form: np.median(seconds[form]))
    for form, difference in differences.items():
        row = of_samples(f"{COUNT} replicas, {form} ÷ {COUNT} runs", seconds[form] / (COUNT * seconds["single"]),
                         most=WITHIN * ideal, check=str(difference),
                         correct=difference.within(pair.setting.tolerance),
                         note=f"ideal {figure(ideal)} at a teacher's share of {np.median(share):.0%}")  # fmt: skip
        if form != best:  # the faster one is what is chosen
            row.met = None
        rows.append(for_accelerators(row))
    return rows


def scaling(pair: Pair) -> list[Row]:
    """As many rows on each of n devices as one has beside it: n times the efficiency."""
    there = [count for count in SIZES if count <= jax.local_device_count()]
    missing = [count for count in SIZES if count > jax.local_device_count()]
    rows, subjects, checks = [], [], {}
    if len(there) > 1:
        for count in there:
            many = _on(pair, count)
            if count > 1:
                found = outcome(*many.live(many.state(), many.variables, many.batch))
                checks[count] = compare(found, _on_one(pair, count), many.state())
            subjects.append(stepping(str(count), many.live, many.state(), many.variables, many.batch))
        seconds = turns(subjects, pair.setting.rounds)
        for count in there[1:]:
            row = of_samples(f"weak scaling to {count} devices", count * seconds["1"] / seconds[str(count)],
                             least=count * 7.6 / 8, check=str(checks[count]),
                             correct=checks[count].within(pair.setting.tolerance),
                             note=f"{pair.setting.batch_size} rows a device, beside one device")  # fmt: skip
            rows.append(for_accelerators(row))
    note = f"{jax.local_device_count()} device{'s' if jax.local_device_count() > 1 else ''} here"
    return [*rows, *(Row(f"weak scaling to {count} devices", note=note) for count in missing)]


def _on(pair: Pair, count: int, devices: int | None = None) -> Pair:
    """The pair with `count` times its rows, on so many devices or on another number of them."""
    if count == 1:
        return pair
    setting = dataclasses.replace(pair.setting, batch_size=count * pair.setting.batch_size)
    return Pair(setting, devices=jax.devices()[: devices or count])


def _on_one(pair: Pair, count: int):
    """What the rows of `count` devices give on a single one."""
    one = _on(pair, count, devices=1)
    return outcome(*one.live(one.state(), one.variables, one.batch))
