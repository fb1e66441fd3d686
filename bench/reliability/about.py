"""What every part tries, as the document says it."""

from __future__ import annotations

from bench.reliability import coverage

ABOUT = {
    "damage": """\
Files of seven small models (convolutions, attention by torch's module and by hand, experts fused and listed,
recurrent layers, a configuration) are damaged: bits flipped; ranges zeroed, lost, repeated, moved or filled at
random; cut off; spliced with another valid file of the same kind; tensors swapped, zeroed, relabelled, renamed,
turned, dropped, taken from another file; entries of JSON lost, doubled, moved, taken from another place or file,
given other types, extremes (2⁵³, 10⁴⁰⁰, 1e999, NaN, 3,000 nested lists), and keys written twice. Of pruned
folders weights and plan are damaged, and files of three saves mixed. The reader must raise ArtefactError, or give
what the undamaged file gives: to the bit, and with the outputs that the model gives. Another result is wrong, and
so are another exception, more than 256 MiB of memory, more than 20 seconds, a process that dies.""",
    "fuzz": """\
Readers are given what atheris, a coverage-guided fuzzer, finds to go through new lines of `fairkern/artefacts`,
`compact/checkpoint.py` and `report/files.py`, with changes that know the files' layout (those above) and sums
made anew, so that what lies behind the sums is read too. The entry points of the CPU extension, with the checks
of its Python bindings, are compiled by clang with libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer:
sizes, strides (gaps, turned, expanded), types, indices and values come from the fuzzer; arrays end where the last
element does. Whole numbers give exact results, which are compared with plain definitions; others with the other
instruction sets, to the bit; arguments that are not valid (one of them at a time) must be refused. Not covered:
OpenMP's threads (`tests/test_sanitizers.py` runs the operators' tests on them, with sanitizers), kernels of a
GPU.""",
    "kills": """\
A process is killed (SIGKILL) while it writes over a file or folder of another plan, after a time drawn from what
a write takes. Then the reader must give the old or the new one whole, or ArtefactError; the next write must give
the new one, and no other file may be left. The last row reads a folder while another process writes two models
into it in turn.""",
    "interrupts": """\
SIGINT comes while a model is traced, scored, masked, pruned or saved, after a time drawn from what that takes.
Then every parameter, buffer, attribute and hook of the model, threads, random states, modes of torch, the
signal's handler and the folder must be as they were, the same work must run once more, and the model give what it
gave. (A sweep over every line is a test.)""",
    "threads": """\
Two threads score and plan two models or one, or one traces the model that the other calls. Each must give what it
gives alone, or raise InputError, and nothing may be left behind. Every thread's outcome is counted.""",
    "options": """\
Every option of every public function is given values of the wrong kind or out of range (texts, truth values, None,
lists, arrays, NaN, negative numbers, classes, objects of no kind), one at a time. Each must raise InputError that
names the option. (What options do to each other is `tests/test_fitting_options.py`.)""",
    "graphs": """\
Models of up to nine random pieces (convolutions, norms, attention, recurrent layers, experts, computed weights,
joins, views and more) are traced twice, proven, cut at random and by scores, and compared with themselves masked:
outputs and gradients, other batches and lengths, saved and loaded, trained for a step; and the model must be left
as it was.""",
    "soak": """\
Traced, scored, saved, planned, masked, cut, compensated, saved and loaded, round after round in one process.
Every round must give the same plan and model; no hook, thread, open file or mode of torch may stay; memory may
not grow by more than 16 KiB a round after the first quarter.""",
    "coverage": f"""\
Lines of `fairkern/` that the ordinary tests (`pytest`) run on a machine without a GPU; {coverage.BOUND:.0%} are
asked for. Left out: the files that only a GPU runs ({", ".join(f"`{name}`" for name in coverage.ON_A_GPU)}).""",
}
