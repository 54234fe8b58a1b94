"""Generated C that this process runs: what it computes is checked before it is timed."""

import shutil

import pytest

from lilliput.core.errors import ArtifactError, UsageError
from lilliput.export.c import host, project
from lilliput.export.c.host import host_runner
from lilliput.graph.lower import lower
from lilliput.measure.latency import interleaved
from lilliput.methods.quantization.post_training import Quantization
from lowered import quantized_tiny

needs_cc = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is installed")


@pytest.fixture(params=[8, 12])
def folder(tmp_path, request):
    bits = request.param
    project.write(lower(quantized_tiny("conv", Quantization(signed=True, activation_bits=bits))), tmp_path, name="it")
    return tmp_path


@needs_cc
def test_a_folder_is_timed_in_this_process_and_left_as_it_was(folder):
    before = sorted(p.name for p in folder.iterdir())
    with host_runner(folder) as runner:
        found = interleaved({"c": runner}, repeats=3, min_time_ms=0.05).latency("c")
    assert found.value > 0
    assert found.note.startswith("C99, ")
    assert sorted(p.name for p in folder.iterdir()) == before


@needs_cc
def test_code_that_computes_something_else_is_not_timed(folder):
    code = (folder / "it.c").read_text()
    (folder / "it.c").write_text(code.replace("void it_run(", "static void was(") + IDLE)
    with pytest.raises(ArtifactError, match="differs from its golden vectors"), host_runner(folder):
        pass


@needs_cc
def test_code_that_does_not_build_says_what_the_compiler_says(folder):
    (folder / "it.c").write_text("#error broken\n")
    with pytest.raises(ArtifactError, match="broken"), host_runner(folder):
        pass


def test_without_a_compiler_there_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(host, "found", lambda *_: None)
    with pytest.raises(UsageError, match="no C compiler"), host_runner(folder):
        pass


IDLE = """
void it_run(const it_in_t *in, it_out_t *out) {
  was(in, out);
  out[0] = (it_out_t)(out[0] + 1);
}
"""
