"""What a partner can be asked to contribute, and whether it is what the masking task beside it says."""

from common.errors import ProtocolError
from common.histogram_messages import EvaluationTask, HistogramTask
from common.messages import StatisticsTask, TrainTask
from common.stage_messages import MaskTask

Work = TrainTask | StatisticsTask | HistogramTask | EvaluationTask


def require_one_task(task: MaskTask, work: Work, whole_numbers: bool) -> None:
    """Refuses a masking task and a piece of work that are not of one round."""
    session = task.session
    if isinstance(work, HistogramTask | EvaluationTask):
        same = (work.run_id, work.round, work.length) == (session.run_id, session.round, task.length)
        if not same or task.clip != 0:
            raise ProtocolError("run, round, length or update_bound differ between masking and histogram")
        return
    if isinstance(work, StatisticsTask):
        same = (work.run_id, 0, 2 * len(work.catalogue)) == (session.run_id, session.round, task.length)
        same = same and task.clip == 0
    else:
        same = (work.run_id, work.round, work.attempt) == (session.run_id, session.round, session.attempt)
        same = (
            same
            and (work.weight, len(work.model_D)) == (task.weight, task.length)
            and (task.clip == 0 if whole_numbers else task.clip > 0)
        )
    if not same:
        raise ProtocolError("run, round, attempt, weight, length or update_bound differ between masking and work")
