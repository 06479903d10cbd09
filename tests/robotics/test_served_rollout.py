"""A rollout whose policy is on a server."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("msgpack", reason="msgpack is not installed (extra `robots`)")
pytest.importorskip("websockets", reason="websockets is not installed (extra `robots`)")

from core.errors import AccidentError, ConfigError
from robotics.environments import make_environment
from robotics.policies import make_policy
from robotics.rollout import run_episode
from tests.robotics.serving import serving
from tools.cli import main


def test_the_expert_of_an_environment_succeeds_through_a_server():
    environment = make_environment("kinematic", "reach", {"size": 32})
    with serving(environment.expert) as (url, _):
        policy = make_policy(url, environment)
        record, _ = run_episode(environment, policy, episode=0, seed=0)
    assert record["success"]["any"]
    observation = environment.reset(1)
    policy.reset(observation["instruction"], 1)
    with pytest.raises(AccidentError, match="has closed the session"):
        policy.select_action(observation)


def test_finished_episodes_are_kept_when_a_server_goes_away(tmp_path, capsys):
    class Stops:
        """Answers for two episodes; in the third it is gone."""

        episodes = 0

        def reset(self, instruction: str, seed: int = 0) -> None:
            self.episodes += 1
            if self.episodes == 3:
                raise RuntimeError("out of memory")

        def predict_action_chunk(self, observation):
            import numpy as np

            return np.zeros((6, 7))

    command = ["rollout", "--env", "kinematic", "--task", "reach", "--episodes", "4", "--out", str(tmp_path / "out")]
    with serving(Stops) as (url, _):
        assert main([*command, "--videos", "0", "--policy", url, "size=32"]) == AccidentError.exit_code
    assert "RuntimeError: out of memory" in capsys.readouterr().err
    kept = [json.loads(line) for line in (tmp_path / "out" / "episodes.jsonl").read_text().splitlines()]
    assert [record["episode_ix"] for record in kept if "episode_ix" in record] == [0, 1]


def test_no_server_is_one_line():
    environment = make_environment("kinematic", "reach", {"size": 32})
    with pytest.raises(ConfigError, match="no policy server at"):
        make_policy("ws://127.0.0.1:9", environment)
