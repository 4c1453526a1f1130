"""Machine code of compiled kernels, as the nvidia-cuda-nvdisasm wheel prints it: instructions, loops, loads."""

import importlib.util
import re
import subprocess
from functools import cache
from pathlib import Path

LINE = re.compile(r"\s*(?:(\.L_x_\d+):|/\*[0-9a-f]{4,}\*/\s+(.*?);)")
REGISTER = re.compile(r"\bR(\d+)\b")
WIDTHS = {"64": 2, "128": 4}  # registers of a load


@cache
def disassembler():
    """The program's path, or None where the wheel is not installed."""
    spec = importlib.util.find_spec("nvidia.cu13") if importlib.util.find_spec("nvidia") else None
    found = [Path(root) / "bin" / "nvdisasm" for root in (spec.submodule_search_locations if spec else ())]
    return next((path for path in found if path.exists()), None)


def instructions(cubin, folder):
    """{symbol: [instruction]} of a cubin, in the order in which they are stored."""
    return {symbol: [instruction for _, instruction in lines if instruction]
            for symbol, lines in _lines(cubin, folder).items()}


def loops(cubin, folder):
    """{symbol: [the instructions of each loop]} of a cubin; inner loops are part of those around them too."""
    return {symbol: _loops(lines) for symbol, lines in _lines(cubin, folder).items()}


def _lines(cubin, folder):
    """{symbol: [(label, instruction), of which one is empty]}"""
    path = folder / "kernels.cubin"
    path.write_bytes(cubin)
    text = subprocess.run([disassembler(), path], capture_output=True, text=True, check=True).stdout
    sections = re.split(r"\n\s*\.section\s+", text)
    return {section.split(",")[0].removeprefix(".text."): LINE.findall(section) for section in sections
            if section.startswith(".text.")}


def _loops(lines):
    code = []
    labels = {}
    found = []
    for label, instruction in lines:
        if label:
            labels[label] = len(code)
            continue
        code.append(instruction)
        target = re.search(r"\bBRA\b.*?(\.L_x_\d+)", instruction)
        if target and target[1] in labels:
            found.append(code[labels[target[1]] :])
    return found


def places(instructions, names):
    """Where instructions of these names, a regular expression, stand."""
    return [i for i, instruction in enumerate(instructions) if re.match(rf"(@\S+ )?({names})\b", instruction)]


def count(loop, name):
    return len(places(loop, name))


def loads_in_flight(loop):
    """How many loads from global memory are on their way at most before an instruction needs one of them."""
    waiting = []  # the registers of each
    most = 0
    for instruction in loop:
        operation, *operands = re.split(r"[ ,]+", re.sub(r"^@\S+ ", "", instruction))
        name, *options = operation.split(".")
        result = operands.pop(0) if name == "LDG" else ""
        used = {int(number) for number in REGISTER.findall(" ".join(operands))}
        waiting = [registers for registers in waiting if not registers & used]
        if result:
            first = int(result.removeprefix("R"))
            waiting.append(set(range(first, first + WIDTHS.get(options[-1], 1))))
        most = max(most, len(waiting))
    return most
