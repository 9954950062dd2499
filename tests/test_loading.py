"""The host's peak while a checkpoint of 4 GB is loaded onto eight devices."""

import pytest

from benchmarks import loading


@pytest.mark.long
def test_peak_is_what_the_devices_hold_and_a_little(tmp_path):
    for found in loading.run(4.0, where=str(tmp_path)):
        assert found["tensors"] > 3.9e9
        assert found["peak"] <= found["held"] + loading.LIMIT * found["largest"], found
