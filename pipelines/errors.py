"""What ends a run before its end. Whatever it is, what is committed stays, and the same command resumes.

InfrastructureError   the cluster, or the place of the results, cannot do the work
HeadLost              one of them: the cluster's head does not answer
LimitReached          a limit that the job sets
Terminated            the process was asked to end
"""

from __future__ import annotations

from audit.errors import AuditError


class InfrastructureError(AuditError):
    """The cluster cannot do the work, whatever the job says."""


class HeadLost(InfrastructureError):
    """The head of the Ray cluster does not answer: nothing more can be asked of Ray, not even to let go of workers."""


class LimitReached(AuditError):
    """The run stopped at a limit that the job sets; once the limit is raised, the same command resumes it."""


class Terminated(BaseException):
    """SIGTERM: as Ctrl-C, not to be caught on the way."""
