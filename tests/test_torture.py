"""A few cases of every attack; `make torture` runs all of them."""

import pytest

from tests.torture import attacks
from tests.torture.__main__ import tried

pytestmark = pytest.mark.slow
ATTACKS = attacks()


@pytest.mark.parametrize("name", ATTACKS)
def test_no_case_of_an_attack_gets_through(name):
    attack = ATTACKS[name]
    found = list(tried(attack, seed=1, count=attack.short))
    assert len(found) >= attack.short
    assert [each for each in found if each.verdict == "failed"] == []
