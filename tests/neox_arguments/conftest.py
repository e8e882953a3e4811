import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)  # the machine can be shared
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    """Remove the world size of an outer launcher."""
    for name in ("WORLD_SIZE", "RANK", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small():
    """A small trainable model."""
    return {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "seq_length": 32,
        "pos_emb": "rotary",
        "optimizer": {"type": "Adam", "params": {"lr": 1e-3}},
        "train_micro_batch_size_per_gpu": 4,
        "train_iters": 10,
    }


@pytest.fixture
def write(tmp_path):
    """A function that writes a configuration file and returns its path."""

    def _write(text, name="model.yml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return _write
