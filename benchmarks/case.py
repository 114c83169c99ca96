"""What a comparison is: candidates that compute one thing from the same inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

Call = Callable[[int], object]
"""call(i) computes from set i of the inputs: on a GPU they rotate, elsewhere there is one."""

OURS = "LoRun"
REFERENCE = f"{OURS}, reference backend"


@dataclass(frozen=True)
class Candidate:
    """One way to compute it.

    Args:
        call: what is timed; it returns a tensor, several, or nothing that could be compared.
        ours: whether it is LoRun's; the first of ours is the one that peers are compared with.
        own_code: whether LoRun's code runs in it although it is a peer: no yardstick for LoRun's speed.
        against: another one of ours that this peer is compared with.
        expected: what its result must equal; by default the result of the one it is compared with.
        unlike: why its result is another one, such as "no adapter"; without a reason it is checked.
        images: images a call, where they are not the case's.
        forward: the part of a training step whose graph is kept for backward; it returns the loss or result.
        parameters: bytes of its weights.
    """

    call: Call
    ours: bool = False
    own_code: bool = False
    against: str | None = None
    expected: Call | None = None
    unlike: str | None = None
    images: int | None = None
    forward: Call | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class Work:
    """What the definition cannot do without: bytes read and written once, and operations.

    An operation is a multiplication or an addition: two a multiply-accumulate.
    """

    bytes: int
    flops: int = 0


@dataclass
class Case:
    """Candidates on the same inputs, and why others are missing.

    Args:
        title: what tells the case from the others of its group, such as "1x28x256x256".
        images: images, or cubes, a call.
        inputs: how many sets of inputs there are to rotate.
        work: of ours, for the roofline.
        axis: for a plot over size, batch or stages: its name and this case's place on it.
        tolerance: the largest difference allowed to a checked result, as a part of its largest value.
        grad: whether candidates differentiate; otherwise they run under torch.no_grad.
        peak: whether the peak memory of each candidate is measured too, on CPU each in its own process.
    """

    title: str
    candidates: dict[str, Candidate] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    images: int = 1
    inputs: int = 1
    work: Work | None = None
    axis: tuple[str, float] | None = None
    tolerance: float = 1e-4
    grad: bool = False
    peak: bool = False

    def add(self, name: str, make: Callable[[], Candidate]) -> None:
        """Add what `make` returns, or, where a package or a backend is not there, the reason."""
        try:
            self.candidates[name] = make()
        except (ImportError, RuntimeError) as error:
            self.missing[name] = reason(error)

    @property
    def ours(self) -> list[str]:
        return [name for name, candidate in self.candidates.items() if candidate.ours]

    def compared_with(self, name: str) -> str:
        """The one of ours that a candidate is compared with."""
        return self.candidates[name].against or self.ours[0]


def reason(error: BaseException) -> str:
    """The first line of an error, for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
