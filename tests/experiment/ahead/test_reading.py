"""Compiled programs are read as they are: excerpts of what XLA prints, with figures worked out by hand.

`steps_v5e.txt` is a program of three steps on a v5e:2x2, made by libtpu, of which all but the estimated cycles of its
configurations is left out: a 3x3 convolution as teacher, a matrix product as student, a mean square, a step of SGD.
"""

from pathlib import Path

import pytest

from kdjax.experiment.ahead.hlo import Array, UnreadableProgram, parse, parse_arrays
from kdjax.experiment.ahead.parts import differentiates_teacher, part_of
from kdjax.experiment.ahead.products import products
from kdjax.experiment.ahead.reading import read

STEPS = (Path(__file__).parent / "steps_v5e.txt").read_text()


def program(*lines: str, head: str = "", computations: str = ""):
    """A program whose entry has these lines."""
    body = "\n".join(f"  {line}" for line in lines)
    return parse(f"HloModule toy, num_partitions=4{head}\n{computations}\nENTRY %main () -> f32[] {{\n{body}\n}}\n")


@pytest.fixture(scope="module")
def reading():
    return read(parse(STEPS), steps=3)


def test_cycles_of_a_loop_count_as_often_as_it_runs(reading):
    # The kernel is converted once, before the loop of three steps: 2,127 / 3 of a step.
    assert reading.cycles == {
        "teacher forward": 2514 + 2127 / 3, "student forward": 2386, "student backward": 2104, "optimizer": 1841,
        "the rest": 3308 + 3202,
    }  # fmt: skip
    assert [cost.cycles for cost in reading.dearest[:2]] == [3308, 3202] and reading.loops == ()


def test_flops_are_those_of_xlas_own_count(reading):
    # 16 images a device, 16 channels to 64, stride 2: of 4 x 4 outputs, those at the far edges reach 2 of 3 rows of the kernel.
    assert reading.flops["teacher forward"] == 2 * 16 * 64 * 16 * (3 + 3 + 3 + 2) ** 2
    assert reading.flops["student forward"] == reading.flops["student backward"] == 2 * 16 * 4 * 4 * 16 * 64


def test_collectives_are_counted_a_step(reading):
    (reduced,) = reading.collectives
    assert (reduced.kind, reduced.count) == ("all-reduce", 2)
    assert reduced.bytes == 16 * 64 * 2 + 4 and reduced.largest == 16 * 64 * 2, "a gradient in bfloat16, and a loss"
    assert reduced.parts == {"student backward": 1, "optimizer": 1}
    assert reduced.types == ("bf16", "f32") and reduced.sent(4) == 2 * 3 / 4 * reduced.bytes


def test_the_state_is_aliased_and_nothing_is_wrong(reading):
    assert (reading.aliased, reading.not_aliased, reading.devices) == (2, (), 4)
    assert not reading.callbacks and not reading.differentiated
    without = read(parse(STEPS.replace("{0}: (0, {}, may-alias), ", "")))
    assert without.not_aliased == ("state['params']['w']",) and without.aliased == 1


def test_the_gradient_that_reaches_the_teacher_is_found():
    wrong = read(parse(STEPS.replace("/teacher/conv_general", "/transpose(jvp(teacher))/conv_general")))
    assert wrong.differentiated == ("jit(steps)/while/body/closed_call/transpose(jvp(teacher))/conv_general_dilated",)


@pytest.mark.parametrize(
    "text, wanted, held, padded",
    [
        ("bf16[64,32,32,64]{3,0,2,1:T(8,128)(2,1)S(1)}", ("bf16", 1), 2 * 2**22, 2 * 2**23),  # 64 channels of 128 lanes
        ("f32[8]{0:T(128)}", ("f32", 0), 32, 512),
        ("f32[]{:T(128)}", ("f32", 0), 4, 512),
        ("bf16[3,3,1,8]{3,2,1,0:T(2,128)(2,1)}", ("bf16", 0), 144, 9 * 2 * 128 * 2),
        ("u8[5,7]", ("u8", 0), 35, 35),
        ("f8e4m3fn[16]{0}", ("f8e4m3fn", 0), 16, 16),
    ],
)
def test_padding_is_that_of_the_tiles(text, wanted, held, padded):
    (array,) = parse_arrays(text)
    assert (array.kind, array.space) == wanted and (array.bytes, array.padded_bytes) == (held, padded)


def test_a_tuples_arrays_are_read_in_order():
    arrays = parse_arrays("(f32[8]{0:T(128)}, /*index=1*/bf16[2,4]{1,0}, u32[]{:S(2)})")
    assert arrays == (
        Array("f32", (8,), (0,), (128,)), Array("bf16", (2, 4), (1, 0)), Array("u32", (), (), (), 2),
    )  # fmt: skip


def test_collectives_of_every_spelling():
    """Begun and awaited, inside a fusion that a loop of them repeats, and a sum of which a slice is kept."""
    inside = """%async_collective_fusion.1 (p: bf16[2]) -> bf16[8] {
  %p = bf16[2]{0} parameter(0)
  ROOT %all-gather.2 = bf16[8]{0} all-gather(%p), channel_id=5, dimensions={0}, frontend_attributes={chain_id="0"}
}
%all-reduce-scatter.3 (p.1: f32[8]) -> f32[2] {
  %p.1 = f32[8]{0} parameter(0)
  %all-reduce.9 = f32[8]{0} all-reduce(%p.1), channel_id=6, to_apply=%add
  ROOT %slice.1 = f32[2]{0} slice(%all-reduce.9), slice={[0:2]}
}"""
    found = read(
        program(
            "%a = bf16[2]{0} parameter(0)",
            "%g = (bf16[2]{0}, bf16[8]{0}) all-gather-start(%a), channel_id=4, dimensions={0}",
            "%d = bf16[8]{0} all-gather-done(%g)",
            "%f = bf16[8]{0} fusion(%a), kind=kCustom, calls=%async_collective_fusion.1",
            '%again = bf16[8]{0} all-gather(%a), channel_id=5, dimensions={0}, frontend_attributes={chain_id="0"}',
            "%other = bf16[8]{0} all-gather(%a), channel_id=5, dimensions={0}",  # those of a shard_map have one channel
            "%s = f32[2]{0} fusion(%d), kind=kCustom, calls=%all-reduce-scatter.3",
            "ROOT %r = f32[2]{0} reduce-scatter(%s), channel_id=7, dimensions={0}, to_apply=%add",
            computations=inside,
        )
    ).collectives
    assert [(c.kind, c.count, c.bytes) for c in found] == [("all-gather", 3, 48), ("reduce-scatter", 2, 64)]


def test_large_work_without_an_estimate_is_named():
    given = "%a = f32[65536]{0} parameter(0)"
    rated = '%n = f32[65536]{0} negate(%a), backend_config={"estimated_cycles":"7"}'
    rest = [
        "%s = f32[65536]{0} sort(%n)",
        "%c = (f32[65536]{0}, u32[]) copy-start(%s)",
        "ROOT %t = f32[8]{0} slice(%s)",
    ]
    assert read(program(given, rated, *rest)).unrated == ("s",)
    assert not read(program(given, rated.partition(", backend")[0], *rest)).unrated, "a compiler that gives none at all"


def test_of_what_is_sliced_the_slice_is_read():
    inside = """%rows (p.0: u8[1000,64], p.1: s32[4]) -> u8[4,64] {
  %p.0 = u8[1000,64]{1,0} parameter(0)
  %p.1 = s32[4]{0} parameter(1)
  ROOT %gather.1 = u8[4,64]{1,0} gather(%p.0, %p.1), slice_sizes={1,64}
}"""
    found = read(
        program(
            "%a = u8[1000,64]{1,0} parameter(0)",
            "%i = s32[4]{0:S(1)} parameter(1)",
            "ROOT %rows.1 = u8[4,64]{1,0:S(1)} fusion(%a, %i), kind=kLoop, calls=%rows",
            computations=inside,
        )
    )
    assert found.traffic == 4 * 64, "rows from the main memory to that on the chip, whose indices are there"
    copied = read(program("%a = u8[10,64]{1,0} parameter(0)", "ROOT %c = u8[10,64]{0,1} copy(%a)"))
    assert copied.traffic == 2 * 640 and copied.copies == (1, 640)
    assert read(program("%a = u8[10,64]{1,0} parameter(0)", "ROOT %c = u8[10,64]{1,0} copy(%a)")).copies == (0, 0)


def test_products_of_every_spelling():
    found = products(
        program(
            "%a = bf16[64,16,16,32]{3,2,1,0} parameter(0)", "%k = bf16[3,3,32,32]{3,2,1,0} parameter(1)",
            # the gradient of a convolution of stride 2, as one with zeros between its inputs
            "%c = bf16[64,32,32,32]{3,2,1,0} convolution(%a, %k), window={size=3x3 pad=1_2x1_2 lhs_dilate=2x2 "
            "rhs_reversal=1x1}, dim_labels=b01f_01oi->b01f",
            "%x = f32[8,100]{1,0} parameter(2)", "%y = f32[100,10]{1,0} parameter(3)",
            "%d = f32[8,10]{1,0} dot(%x, %y), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
            '%g = (f32[8,10]{1,0}, s8[64]{0}) custom-call(%x, %y), custom_call_target="__cublas$lt$matmul"',
        )
    )  # fmt: skip
    # A side has 32 outputs and 3 places each; the 16 inputs are met by 48 of these pairs but for what the edge cuts off: 47.
    assert [p.flops for p in found] == [2 * 64 * 32 * 32 * 47**2, 2 * 8 * 10 * 100, None]
    assert [str(p) for p in found] == ["bf16 × bf16 → bf16", "f32 × f32 → f32", "f32 × f32 → f32"]


def test_calls_to_the_host_are_found():
    told = read(
        program(
            '%c = f32[] custom-call(), custom_call_target="xla_ffi_python_cpu_callback", metadata={op_name="jit(f)/log"}',
            "ROOT %s = (f32[], token[]) send(%c), channel_id=1, is_host_transfer=true",
        )
    )
    assert told.callbacks == ("jit(f)/log", "s")


def test_a_loop_of_unknown_length_is_named():
    inside = """%body (p: f32[]) -> f32[] {
  ROOT %p = f32[] parameter(0)
}
%condition (q: f32[]) -> pred[] {
  %q = f32[] parameter(0)
  ROOT %lt = pred[] compare(%q, %q), direction=LT
}"""
    while_line = '%w = f32[] while(%a), condition=%condition, body=%body, metadata={op_name="jit(f)/while"}'
    assert read(program("%a = f32[] parameter(0)", while_line, computations=inside)).loops == ("jit(f)/while",)
    known = while_line + ', backend_config={"known_trip_count":{"n":"7"}}'
    assert read(program("%a = f32[] parameter(0)", known, computations=inside)).loops == ()


@pytest.mark.parametrize(
    "op_name, part",
    [
        ("jit(step)/teacher/conv_general_dilated", "teacher forward"),
        ("jit(step)/jvp(student)/mul", "student forward"),
        ("jit(step)/transpose(jvp(student))/reduce_sum", "student backward"),
        ("jit(step)/jvp(objective)/simkd/teacher_head/dot", "objective"),
        ("jit(step)/transpose(jvp(objective))/kd/mul", "objective"),
        ("jit(step)/optimizer/sub", "optimizer"),
        ("jit(step)/(transpose(jvp(student))/dot_general;jvp(objective)/reduce_sum)", "student backward"),
        ("jit(step)/views/vmap()/gather", "views"),
        ("frozen[1]", "views"),
        ("frozen[0].params['kernel']", "teacher forward"),
        ("frozen.params['kernel']", "teacher forward"),
        ("state.params['student']['kernel']", "the rest"),
        ("jit(step)/reduce_and", "the rest"),
        ("", "the rest"),
    ],
)
def test_parts_are_told_by_scopes(op_name, part):
    assert part_of(op_name) == part


def test_what_an_objective_calls_of_the_teacher_may_be_differentiated():
    assert differentiates_teacher("jit(step)/transpose(jvp(teacher))/dot_general")
    assert not differentiates_teacher("jit(step)/transpose(jvp(objective))/teacher/dot_general")
    assert not differentiates_teacher("jit(step)/teacher/transpose")


@pytest.mark.parametrize("text", ["", "module {}", "HloModule cut, num_partitions=4\n", STEPS[:-3]])
def test_text_that_is_no_whole_program_is_refused(text):
    with pytest.raises(UnreadableProgram, match="program"):
        parse(text)
