"""HELM inside this process: our tokenizer and our answers in place of its services, and no noise."""

from __future__ import annotations

import contextlib
import io
import logging
import random
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from twin_merging.errors import UserError

if TYPE_CHECKING:
    from helm.benchmark.adaptation.scenario_state import ScenarioState
    from helm.benchmark.runner import Runner

TOKENIZER = "twin_merging/live"


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Run HELM's code without its prints and progress notes, and leave the global random generators as they were.

    HELM seeds ``random`` and ``numpy.random`` itself, always by the same number; and nltk, which it imports, would
    download a tokenizer that no metric used here needs.
    """
    import nltk

    logger = logging.getLogger("helm")
    level, download = logger.level, nltk.download
    states = random.getstate(), np.random.get_state()
    logger.setLevel(logging.ERROR)
    nltk.download = lambda *_, **__: False
    try:
        noise = io.StringIO()  # no terminal: tqdm draws nothing there
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            yield
    finally:
        logger.setLevel(level)
        nltk.download = download
        random.setstate(states[0])
        np.random.set_state(states[1])


def make_runner(benchmark: Path, suite: str, tokenizer: Any) -> Runner:
    """HELM's runner without cache or server; texts are counted by ``tokenizer``, a live one of transformers."""
    from helm.benchmark.executor import ExecutionSpec
    from helm.benchmark.runner import Runner
    from helm.common.authentication import Authentication

    local = benchmark / "local"  # no credentials are there, and none are needed
    spec = ExecutionSpec(url=None, auth=Authentication(""), local_path=str(local), parallelism=1)
    runner = Runner(
        spec, output_path=str(benchmark), suite=suite, skip_instances=False, cache_instances=False,
        cache_instances_only=False, skip_completed_runs=False, exit_on_error=True,
    )  # fmt: skip
    runner.executor.context.tokenizer = _live_tokenizer(tokenizer)  # type: ignore[attr-defined]
    return runner


def register_deployment(context: int | None) -> str:
    """Make HELM know a model of this context in tokens, prompt and answer together, or of no limit; its name."""
    from helm.benchmark.model_deployment_registry import (
        DEPLOYMENT_NAME_TO_MODEL_DEPLOYMENT,
        ClientSpec,
        ModelDeployment,
        register_model_deployment,
    )

    name = f"twin_merging/context_{context}" if context else "twin_merging/unlimited"
    if name not in DEPLOYMENT_NAME_TO_MODEL_DEPLOYMENT:
        client = ClientSpec(f"{__name__}.answering")  # never made from here: the runner is given one
        limits = {"tokenizer_name": TOKENIZER, "max_sequence_length": context} if context else {}
        register_model_deployment(ModelDeployment(name=name, client_spec=client, **limits))  # type: ignore[arg-type]
    return name


def record(runner: Runner) -> Recorded:
    """From now on the runner's requests are kept, and not answered."""
    from helm.benchmark.executor import Executor

    kept = Recorded()

    class Recorder(Executor):
        def __init__(self, executor: Executor):
            self.execution_spec, self.context = executor.execution_spec, executor.context

        def execute(self, scenario_state: ScenarioState) -> ScenarioState:
            kept.state = scenario_state
            return scenario_state

    runner.executor = Recorder(runner.executor)
    return kept


class Recorded:
    """What a runner would have asked."""

    state: ScenarioState


def answering(answers: Iterable[tuple[str, str]]) -> Any:
    """A client of HELM's that gives each prompt the answer it is paired with; of equal prompts, one after the other."""
    from helm.clients.client import Client
    from helm.common.request import GeneratedOutput, Request, RequestResult

    waiting: defaultdict[str, deque[str]] = defaultdict(deque)
    for prompt, answer in answers:
        waiting[prompt].append(answer)

    class Answering(Client):
        def make_request(self, request: Request) -> RequestResult:
            if not waiting[request.prompt]:
                raise changed_since("HELM asks what was not in the exam", request.prompt[-80:])
            output = GeneratedOutput(text=waiting[request.prompt].popleft(), logprob=0.0, tokens=[])
            return RequestResult(success=True, embedding=[], completions=[output], cached=False, request_time=0.0)

        def left(self) -> int:
            """Answers that HELM has not asked for."""
            return sum(map(len, waiting.values()))

    return Answering()


def changed_since(what: str, found: object) -> UserError:
    """The error where HELM's requests and the exam's questions are not the same."""
    hint = "the files or the settings have changed since the exam was made"
    return UserError(what, key="paths.data", found=found, expected="the exam's questions", hint=hint)


def _live_tokenizer(tokenizer: Any) -> Any:
    from helm.common.cache import BlackHoleCacheConfig
    from helm.tokenizers.huggingface_tokenizer import HuggingFaceTokenizer, WrappedPreTrainedTokenizer

    wrapped = WrappedPreTrainedTokenizer(tokenizer)

    class LiveTokenizer(HuggingFaceTokenizer):
        def get_wrapped_tokenizer(self) -> WrappedPreTrainedTokenizer:
            return wrapped

    return LiveTokenizer(BlackHoleCacheConfig(), TOKENIZER)
