"""What the methods share, where no other test sees it."""

from __future__ import annotations

from trl import SFTConfig

from visual_r1.methods.training import on_one_gpu


def test_a_process_keeps_to_one_gpu(tmp_path):
    config = SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8)
    config._n_gpu = 4  # as on a machine with four: the batch would be split over them
    assert config.train_batch_size == 32
    assert on_one_gpu(config).train_batch_size == 8 and config.n_gpu == 1
