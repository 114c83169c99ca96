"""The forms of a network: their weights, and which of them are trained."""

from benchmarks.cases.tasks import BLOCK, FIELD, SHARED, denoiser_bytes, networks_of
from benchmarks.harness.case import OURS
from lorun.report import report


def test_weights_of_stages_that_share_count_once(tiny):
    made = networks_of(device="cpu", **tiny)
    one = sum(parameter.nbytes for parameter in made.forms[SHARED].denoiser.parameters())
    assert denoiser_bytes(made.forms[SHARED]) == one
    assert denoiser_bytes(made.forms[BLOCK]) == denoiser_bytes(made.forms[FIELD]) == 3 * one
    assert denoiser_bytes(made.forms[OURS]) == one + 4 * report(made.forms[OURS]).adapters


def test_only_adapters_steps_and_phi_train_in_ours(tiny):
    made = networks_of(device="cpu", **tiny)
    trained = {form: [p for p in made.forms[form].parameters() if p.requires_grad] for form in made.forms}
    scalars, adapters = 2, 2 * 16 * 3
    phi = tiny["task"] == "cs"
    assert len(trained[OURS]) == scalars + adapters + phi
    assert len(trained[SHARED]) == scalars + 2 * 16 + phi
    assert len(trained[BLOCK]) == len(trained[FIELD]) == scalars + 2 * 16 * 3 + phi
