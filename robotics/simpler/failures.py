"""Failures of the simulator that people meet, recognized by what it prints, and what to do about each."""

from __future__ import annotations

import re

# Pattern in what SAPIEN prints -> what it means and what helps. The first that matches wins. Sources: the threads
# simpler-env/SimplerEnv 18, 20, 112 and 114, haosulab/SAPIEN 18 and 118, allenzren/open-pi-zero 11, and own runs of
# SAPIEN 2.2.2 over Mesa 22.3 (no device) and Mesa 25.0 (extension).
KNOWN = (
    (
        r"ErrorExtensionNotPresent",
        "the Vulkan driver lacks an extension that SAPIEN asks for (VK_KHR_external_semaphore_fd in Mesa before 26.2): "
        "use an NVIDIA driver with its graphics part, or see docs/robots_simpler.md, 'Without a GPU'",
    ),
    (
        r"createDeviceUnique: ErrorInitializationFailed|getSurface\w+: ErrorInitializationFailed|"
        r"glfwCreateWindowSurface",
        "SAPIEN tried to open a window: DISPLAY names a screen that this GPU does not serve. Run with DISPLAY= (empty)",
    ),
    (
        r"Cannot find a suitable rendering device|enumeratePhysicalDevices: ErrorInitializationFailed|"
        r"ErrorIncompatibleDriver|Vulkan is incompatible with your driver|"
        r"Failed to find a supported physical device|No Vulkan extensions found|"
        r"libvulkan\.so\S* cannot open|cannot open shared object file.*vulkan",
        "no usable Vulkan driver: install libvulkan1 and the graphics part of the NVIDIA driver (in a container "
        "NVIDIA_DRIVER_CAPABILITIES=all), and let VK_ICD_FILENAMES name its nvidia_icd.json; without a GPU see "
        "docs/robots_simpler.md",
    ),
    (
        r"No module named '(?:mani_skill2_real2sim|sapien|gymnasium)",
        "its Python lacks SIMPLER: install it as docs/robots_simpler.md says, and check with `selfflow simpler check`",
    ),
    (
        r"No module named 'pkg_resources'",
        "SAPIEN 2.2.2 needs pkg_resources, which setuptools dropped: pip install 'setuptools<70' in its environment",
    ),
)


def explained(printed: str) -> str | None:
    """What a known failure means, with the line that shows it; None where nothing known was printed."""
    for pattern, meaning in KNOWN:
        if match := re.search(pattern, printed):
            start = printed.rfind("\n", 0, match.start()) + 1
            end = printed.find("\n", match.end())
            line = printed[start : end if end >= 0 else None].strip()
            return f"{meaning} ({line})"
    return None
