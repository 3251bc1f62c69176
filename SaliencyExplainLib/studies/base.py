"""What a study is, and how it is run: seeded, with progress, and from where it was stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Cancelled
from ..explanation import versions
from .work import Work

if TYPE_CHECKING:
    from .results import StudyResult

__all__ = ["Study"]


@dataclass(frozen=True)
class Study:
    """A published system, end to end; call it to run it.

    Attributes
    ----------
    name : str
        For the shell.
    title, question : str
        For people; the question is one sentence.
    paper : str
        What it is after, with a link.
    minutes, quick_minutes : float
        About how long it takes on two cores, for people.
    conduct : callable
        Does the work: takes a :class:`.work.Work`, returns a StudyResult.
    """

    name: str
    title: str
    question: str
    paper: str
    minutes: float
    quick_minutes: float
    conduct: Callable[[Work], StudyResult]

    def __call__(
        self,
        folder: str | Path | None = None,
        *,
        quick: bool = False,
        seed: int = 1,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> StudyResult:
        """Run the study.

        Parameters
        ----------
        folder : path, optional
            Where what is done is kept, so that a study that was stopped goes on from there, and
            where the results are written. Left out: in memory only.
        quick : bool
            A small version that shows the same steps; its figures are rough.
        seed : int
            Of everything that is random: the same seed gives the same figures on one machine.
        progress : callable, optional
            Called with the fraction (0 to 1) that is done and what is going on.
        cancelled : callable, optional
            Asked often; the study stops when it returns True.

        Returns
        -------
        StudyResult

        Raises
        ------
        Cancelled
            If it was cancelled; what is done stays in the folder.
        StudyError
            If the folder holds another study, or the same one with other settings.
        """
        work = Work(
            self.name, folder, quick=quick, seed=seed, progress=progress, cancelled=cancelled
        )
        with work:
            try:
                found = self.conduct(work)
            except Cancelled:
                # A run inside says that nothing was changed; here something is kept.
                work.check()
                raise
            settings = {"quick": quick, "seed": seed, **found.settings}
            found = replace(
                found,
                name=self.name,
                title=self.title,
                paper=self.paper,
                question=self.question,
                settings=settings,
                seconds=work.seconds(),
                versions=dict(versions()),
            )
            if folder is not None:
                found.save(folder)
        return found
