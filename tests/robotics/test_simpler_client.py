"""The client of the simulator's process, against a program that stands in for it."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from robotics.simpler.client import PYTHON, Simulator, SimulatorError
from robotics.simpler.failures import explained
from robotics.simpler.pins import violated
from robotics.simpler.worker import read_message, write_message

ROOT = Path(__file__).parents[2]
FAKE = Path(__file__).with_name("fake_simpler.py")
GOOD = {
    "python": "3.11.7",
    "numpy": "1.26.4",
    "sapien": "2.2.2",
    "gymnasium": "0.29.1",
    "setuptools": "65.5.0",
    "mani_skill2_real2sim": "somewhere",
}


@pytest.fixture
def simulator():
    made = []

    def make(failure: str = "", patience: float = 60.0, **settings: str) -> Simulator:
        made.append(Simulator(sys.executable, {"FAKE_SIMPLER": failure, **settings}, patience, FAKE))
        made[-1].start()
        return made[-1]

    yield make
    for entry in made:
        entry.close()


def test_messages_come_back_as_they_were():
    message = {
        "text": "ä",
        "numbers": [1, 2.5, None, True],
        "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
        "empty": np.zeros((0, 3), dtype=np.float32),
        "inner": [{"action": np.array([0.1, -0.2])}],
        "scalar": np.float32(0.5),
    }
    stream = io.BytesIO()
    write_message(stream, message)
    write_message(stream, "next")
    stream.seek(0)
    back = read_message(stream)
    assert back["text"] == "ä"
    assert back["numbers"] == [1, 2.5, None, True]
    assert back["scalar"] == 0.5
    for name in ("image", "empty"):
        assert back[name].dtype == message[name].dtype
        np.testing.assert_array_equal(back[name], message[name])
    np.testing.assert_array_equal(back["inner"][0]["action"], [0.1, -0.2])
    assert read_message(stream) == "next"
    with pytest.raises(EOFError):
        read_message(stream)


def test_what_is_no_message_is_refused():
    with pytest.raises(ValueError, match="a message of"):
        read_message(io.BytesIO(b"\xff\xff\xff\xff" + bytes(100)))
    with pytest.raises(TypeError, match="object cannot be sent"):
        write_message(io.BytesIO(), np.array([{}], dtype=object))


def test_the_client_needs_neither_torch_nor_the_core():
    program = "import sys; import robotics.simpler.client, robotics.client, robotics.wire; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"torch", "core", "configs", "modalities", "scipy"}


def test_the_worker_needs_nothing_of_this_project():
    worker = ROOT / "robotics" / "simpler" / "worker.py"
    program = f"import sys, runpy; runpy.run_path({str(worker)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd="/", capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"robotics", "core", "torch", "msgpack"}


def test_answers_and_refusals(simulator):
    running = simulator()
    assert running.ask("versions")["sapien"] == "2.2.2"
    with pytest.raises(SimulatorError, match="refused 'step'") as caught:
        running.ask("step", action=np.zeros(3))
    assert not caught.value.crashed
    assert running.ask("renderer") == {"made": True}  # it still answers


def test_no_python_is_one_line(monkeypatch, tmp_path):
    monkeypatch.delenv(PYTHON, raising=False)
    with pytest.raises(SimulatorError, match=f"set {PYTHON}"):
        Simulator()
    with pytest.raises(SimulatorError, match=r"nowhere: No such file or directory; SELFFLOW_SIMPLER_PYTHON names no"):
        Simulator(tmp_path / "nowhere").start()


def test_a_python_without_numpy_or_a_broken_worker_tells_its_last_line(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("raise ImportError('numpy was built for another Python')")
    running = Simulator(sys.executable, worker=broken)
    running.start()
    with pytest.raises(
        SimulatorError, match=r"exit code 1\); the last it printed: ImportError: numpy was built"
    ) as caught:
        running.ask("versions")
    assert caught.value.crashed
    running.close()


def test_a_crash_is_told_with_its_reason_and_the_process_starts_again(simulator, tmp_path):
    running = simulator("dies", FAKE_DIED=str(tmp_path / "died"))
    running.ask("make", scene={"environment": "CloseTopDrawerCustomInScene-v0", "max_steps": 113, "settings": {}})
    running.ask("reset", episode={"robot": {"xy": [0.652, 0.009]}})
    for _ in range(3):
        running.ask("step", action=np.zeros(7))
    with pytest.raises(
        SimulatorError, match=r"stopped during 'step' \(killed by SIGABRT\): the Vulkan driver"
    ) as caught:
        running.ask("step", action=np.zeros(7))
    assert caught.value.crashed
    assert not running.running
    running.start()
    assert running.ask("renderer") == {"made": True}
    assert running.starts == 2


def test_a_simulator_that_hangs_is_stopped(simulator):
    running = simulator("hangs")
    running.ask("make", scene={"environment": "CloseTopDrawerCustomInScene-v0", "max_steps": 113, "settings": {}})
    running.ask("reset", episode={"robot": {"xy": [0.652, 0.009]}})
    for _ in range(3):
        running.ask("step", action=np.zeros(7))
    running.patience = 1.0  # only now: on a busy machine the start alone takes longer
    with pytest.raises(SimulatorError, match="did not answer 'step' within 1 s, and was stopped"):
        running.ask("step", action=np.zeros(7))
    assert not running.running


# What SAPIEN 2.2.2 printed: recorded over Mesa 22.3.6, over Mesa 25.0.7 without the layer, and without any driver; the
# others as in the threads that robotics/simpler/failures.py names.
PRINTED = {
    "no driver": (
        "[2026-11-30 03:24:51.945] [svulkan2] [error] GLFW error: X11: Failed to open display \n"
        "[2026-11-30 03:24:51.945] [svulkan2] [warning] Continue without GLFW.\n"
        "RuntimeError: Cannot find a suitable rendering device\n",
        "no usable Vulkan driver",
        "Cannot find a suitable rendering device)",
    ),
    "extension": (
        "[svulkan2] [error] GLFW error: X11: Failed to open display \n"
        "RuntimeError: vk::PhysicalDevice::createDeviceUnique: ErrorExtensionNotPresent\n",
        "the Vulkan driver lacks an extension",
        "createDeviceUnique: ErrorExtensionNotPresent)",
    ),
    "display": (
        "[svulkan2] [error] GLFW error: X11: Failed to open display \n[svulkan2] [warning] Continue without GLFW.\n"
        "RuntimeError: vk::PhysicalDevice::createDeviceUnique: ErrorInitializationFailed\n",
        "DISPLAY names a screen that this GPU does not serve",
        "createDeviceUnique: ErrorInitializationFailed)",
    ),
    "driver not set up": (
        "RuntimeError: vk::Instance::enumeratePhysicalDevices: ErrorInitializationFailed\n",
        "no usable Vulkan driver",
        "ErrorInitializationFailed)",
    ),
    "no driver at all": (
        "[2026-11-30 03:24:54.446] [svulkan2] [error] Vulkan is incompatible with your driver. You may not use the "
        "renderer to render, however, CPU resources will be still available.\n",
        "no usable Vulkan driver",
        "will be still available.)",
    ),
    "setuptools": (
        "  File \"sapien/__init__.py\", line 3, in <module>\nModuleNotFoundError: No module named 'pkg_resources'\n",
        "pip install 'setuptools<70'",
        "'pkg_resources')",
    ),
}


@pytest.mark.parametrize("name", PRINTED)
def test_known_failures_are_told_apart(name):
    printed, meaning, shown = PRINTED[name]
    line = explained(printed)
    assert line is not None
    assert meaning in line
    assert line.endswith(shown)
    assert [other for other, (_, text, _) in PRINTED.items() if text in line and text != meaning] == []


def test_what_a_working_simulator_prints_is_no_failure():
    harmless = (
        "[2026-11-30 02:28:49.633] [svulkan2] [error] GLFW error: X11: Failed to open display \n"
        "[2026-11-30 02:28:49.633] [svulkan2] [warning] Continue without GLFW.\n"
        "[svulkan2] [warning] A second renderer will share the same internal context with the first one.\n"
    )
    assert explained(harmless) is None


def test_pins_that_hold_and_that_do_not():
    assert violated(GOOD) == {}
    assert violated({**GOOD, "numpy": "2.1.3"}) == {
        "numpy": "2.1.3, wanted <2: pip install 'numpy<2': with 2 the inverse kinematics of SAPIEN 2 crash"
    }
    assert list(violated({**GOOD, "setuptools": "81.0.0", "sapien": "3.0.3", "python": "3.12.1"})) == [
        "python",
        "sapien",
        "setuptools",
    ]
    assert violated({**GOOD, "gymnasium": "1.0.0"})["gymnasium"].startswith("1.0.0, wanted >=0.28.1,<1")
    assert violated({**GOOD, "sapien": None})["sapien"].startswith("is missing, wanted >=2.2.2,<2.2.3")
    assert "clone it" in violated({**GOOD, "mani_skill2_real2sim": None})["mani_skill2_real2sim"]
