"""Every key counts once, and a file that is made of another says so."""

from loraport.files.lora.key_account import KeyAccount
from loraport.files.lora.provenance import made_from, transfer_steps
from loraport.files.lora.read import read_lora
from tests.transfers.models import make_family


def test_every_key_counts_once():
    """As dropped if it was, else at its first destination, however often it is named."""
    account = KeyAccount.of([("c", "no place"), ("c", "no name"), ("d", "no place")], transferred="aab", copied="abce")
    assert account.as_json() == {
        "in": 5,
        "transferred": 2,
        "copied": 1,
        "dropped": [["c", "no name"], ["c", "no place"], ["d", "no place"]],
    }
    assert str(account) == "5 in: 2 transferred, 1 copied, 3 dropped"
    assert str(KeyAccount.of([], merged="ab")) == "2 in: 2 merged, 0 dropped"


def test_accounts_of_several_files_name_the_file():
    """Files of one name in two folders have keys of their own."""
    one = KeyAccount.of([("c", "no place")], merged="ab")
    assert KeyAccount.joined([("x", one)]) == one
    both = KeyAccount.joined([("x", one), ("x", one)])
    assert (both.total, both.counts) == (6, {"merged": 4}) and both.dropped == (("x: c", "no place"),) * 2


def test_whatever_is_made_of_a_lora_names_the_transfers_before(tmp_path):
    """Also a calibrated one: the chain does not end where no method of transfer stands."""
    lora = read_lora(make_family(tmp_path, blocks=1).lora)
    first = made_from(lora, "calibrated")
    assert transfer_steps({f"loraport.{name}": text for name, text in first.items()})[0]["lora_sha256"] == lora.sha256
    assert "earlier" not in first
    lora.metadata.update({"loraport.method": "casa", "loraport.lora": "style.safetensors"})
    second = {f"loraport.{name}": text for name, text in made_from(lora, "calibrated").items()}
    assert [step["method"] for step in transfer_steps(second)] == ["casa", "calibrated"]
