"""deepy.py over pdsh and sshd on two hosts."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("clusters")]


def test_two_hosts_train_as_one_process_does(make_run, references):
    run = make_run()
    assert run.deepy().wait(timeout=240) == 0, run.said()
    run.wait_for_end()
    run.assert_trained_as(references)
