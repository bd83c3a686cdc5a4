"""The parts of a step, by the scopes in which its operations were made."""

import re

PARTS = ("teacher forward", "student forward", "student backward", "objective", "optimizer", "views", "the rest")
# The innermost word counts that comes first here: what an objective calls of a teacher is the objective's.
SCOPES = ("optimizer", "objective", "teacher", "student", "views")


def scopes(op_name: str) -> list[str]:
    """The words of an `op_name`: of `jit(step)/transpose(jvp(student))/mul` jit, step, transpose, jvp, student, mul."""
    return re.findall(r"[\w.\-]+", op_name)


def part_of(op_name: str) -> str:
    """Which part of a step an operation belongs to, by its `op_name`. Arguments, brought into another layout, have names too."""
    argument = re.match(r"state\b|batch\b|frozen\[1\]|frozen\b|teacher\b", op_name)
    if argument:
        return {"frozen[1]": "views", "frozen": "teacher forward", "teacher": "teacher forward"}.get(
            argument[0], "the rest"
        )
    words = scopes(op_name.partition(";")[0])  # of several that were made one, the first
    scope = next((scope for scope in SCOPES if scope in words), None)
    if scope == "student":
        return "student backward" if "transpose" in words else "student forward"
    return {None: "the rest", "teacher": "teacher forward"}.get(scope, scope)


def differentiates_teacher(op_name: str) -> bool:
    """Whether an operation is of a backward pass through the teacher itself."""
    return "transpose(jvp" in op_name and part_of(op_name) == "teacher forward"
