"""What an import brings along: nothing that it does not need."""

import subprocess
import sys

import pytest

from tests.cases import DIGITS, READER, ROOT

READ = """
import sys

sys.modules.update(dict.fromkeys({blocked}))
from {package} import ImageToText
print(ImageToText.from_pretrained({reader!r})({image!r}).text)
"""


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def imported_by(module):
    return set(python(f"import sys, {module}; print(*{{n.split('.')[0] for n in sys.modules}})").split())


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("ved_flax", {"torch", "transformers", "huggingface_hub", "PIL", "orbax", "ved_torch"}),
        ("ved_flax.train.data, ved_flax.train.reporters.standard", {"grain", "datasets", "matplotlib", "PIL", "orbax"}),
        ("ved_core.configs", {"torch", "jax", "flax", "transformers", "huggingface_hub"}),
        ("conversion.checkpoint", {"torch", "jax", "flax", "transformers", "huggingface_hub"}),
        ("ved_cli", {"torch", "jax", "flax", "transformers", "huggingface_hub", "numpy"}),
    ],
)
def test_imports_are_lean(module, unwanted):
    bare = imported_by("jax, flax.nnx") if module.startswith("ved_flax") else set()
    assert not (imported_by(module) - bare) & unwanted


def test_flax_reads_an_image_where_torch_and_tensorflow_cannot_be_imported():
    pytest.importorskip("flax")
    code = READ.format(
        package="ved_flax",
        blocked={"torch", "torchvision", "tensorflow"},
        reader=str(READER),
        image=str(DIGITS / "00.png"),
    )
    assert python(code) == "three two"


def test_importing_does_no_work():
    pytest.importorskip("flax")
    code = "import ved_flax; from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())"
    assert python(code) == "False"
