"""The page itself, in Gradio: one tab for each stream, the requests, and the gallery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.captions import text_limit
from core.errors import ConfigError, SelfFlowError
from core.optional import need
from core.sampling.config import SOLVERS
from tools.app import view
from tools.app.request import Request
from tools.app.studio import Studio
from tools.app.uploads import keep, keep_painted

gr: Any = need("gradio", "selfflow app", "All other commands work")
HERE = Path(__file__).parent
MOST_SEED = 2**31 - 1
# What is given of a part: its label, and how it is asked for.
GIVEN = {
    "image": "Image; paint over what is to be made anew",
    "first_frame": "First frame",
    "video": "Video, to make the rest for it",
    "audio": "Audio, to make the rest for it",
    "continue": "Audio to continue",
}
WHOLE = ("video", "audio", "actions")  # leave nothing to make in a stream of one part
SYSTEM = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]  # no font comes over a network
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]


@dataclass
class Form:
    """The components of one stream.

    Attributes:
        fields: by name: prompts, negative, number, seed, and settings of the sampler.
        given: (part, name of the file) -> its component.
    """

    stream: str
    fields: dict[str, Any] = field(default_factory=dict)
    given: dict[tuple[str, str], Any] = field(default_factory=dict)


def serve(studio: Studio, host: str, port: int, open_browser: bool) -> None:
    """Until it is interrupted."""
    page = build(studio)
    options = {"server_name": host, "server_port": port or None, "inbrowser": open_browser, "prevent_thread_lock": True}
    try:
        _, address, _ = page.launch(**options, **launch_options(studio))
    except OSError as error:
        raise ConfigError(f"--port: {port} cannot be listened at on {host}; is it taken? 0 finds a free one") from error
    print(f"{address} generates with {studio.loaded.folder}; files go to {studio.out}; ctrl-c stops", flush=True)
    page.block_thread()


def launch_options(studio: Studio) -> dict[str, Any]:
    """Files of the output folder are served, and no others; nothing is shared, reported or fetched."""
    theme = gr.themes.Default(primary_hue="blue", font=SYSTEM, font_mono=MONO).set(
        block_info_text_color="*neutral_600", body_text_color_subdued="*neutral_600"
    )
    return {
        "allowed_paths": [str(studio.out)],
        "max_file_size": f"{int(studio.limits.megabytes * 1e6)}b",
        "share": False,
        "quiet": True,
        "footer_links": [],
        "ssr_mode": False,
        "theme": theme,
        "css": (HERE / "page.css").read_text(),
    }


def build(studio: Studio) -> Any:
    """The page as `gradio.Blocks`."""
    loaded, streams = studio.loaded, list(studio.loaded.config.streams)
    name = loaded.folder.resolve().name
    with gr.Blocks(title=f"{name} · selfflow", analytics_enabled=False) as page:
        # Stays in the browser over a reload: the numbers of its own requests, and what its forms held.
        kept = gr.BrowserState({"jobs": [], "forms": {}}, storage_key=f"selfflow-{name}", secret=str(studio.out))
        seen = gr.State("")
        gr.Markdown(
            f"# {name}\n{loaded.config.method}, step {loaded.step:,}, "
            f"{'EMA weights' if loaded.weights == 'ema' else loaded.weights}"
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                forms = []
                with gr.Tabs():
                    for stream in streams:
                        with gr.Tab(stream):
                            forms.append(_form(studio, stream, kept))
            with gr.Column(scale=2, min_width=300):
                gr.Markdown("### Requests")
                jobs = gr.HTML()
                stop = gr.Button("Stop my requests", size="sm")
        gr.Markdown("### Gallery")
        which = gr.Radio(["all", *streams], value="all", show_label=False, container=False, visible=len(streams) > 1)
        samples = gr.HTML()

        def refresh(which: str, seen: str) -> tuple[str, Any, str]:
            now = f"{which} {view.folder_version(studio.out, streams)}"
            shown = gr.skip() if now == seen else view.gallery(studio.out, streams, "" if which == "all" else which)
            return view.jobs_view(studio.jobs()), shown, now

        def reload(which: str, state: dict[str, Any]) -> list[Any]:
            return [*refresh(which, ""), *_restored(forms, state)]

        def stop_mine(state: dict[str, Any]) -> None:
            for number in state["jobs"]:
                studio.stop(number)

        fields = [component for form in forms for component in form.fields.values()]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(reload, [which, kept], [jobs, samples, seen, *fields], **quiet)
        gr.Timer(1.0).tick(refresh, [which, seen], [jobs, samples, seen], **quiet)
        which.change(refresh, [which, seen], [jobs, samples, seen], **quiet)
        stop.click(stop_mine, [kept], None, **quiet)
    return page


def _form(studio: Studio, stream: str, kept: Any) -> Form:
    loaded, form = studio.loaded, Form(stream)
    sampling, parts = loaded.config.streams[stream].sampling, loaded.generator.parts[stream]
    kind, fields = loaded.config.condition.kind, form.fields
    if kind == "text":
        limit = text_limit(loaded.config.condition, loaded.generator.text)
        note = "One on each line." + (f" {limit.limit} {limit.unit} are read." if limit else "")
        fields["prompts"] = gr.Textbox(label="Prompts", info=note, lines=2, max_lines=8)
        fields["negative"] = gr.Textbox(label="Negative prompt", info="Guidance leads away from it.")
    elif kind == "label":
        labels = loaded.generator.conditions.labels
        fields["prompts"] = gr.Dropdown(labels, multiselect=True, label="Classes")
        fields["negative"] = gr.Dropdown(["", *labels], value="", label="Negative class")
    with gr.Row():
        fields["number"] = gr.Number(1, label="Samples of each prompt", precision=0, minimum=1, min_width=120)
        fields["seed"] = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MOST_SEED, min_width=120)
    with gr.Row():
        fields["solver"] = gr.Dropdown(list(SOLVERS), value=sampling.solver, label="Solver", min_width=120)
        fields["steps"] = gr.Number(sampling.steps, label="Steps", precision=0, minimum=1, min_width=120)
        fields["cfg_scale"] = gr.Number(sampling.cfg_scale, label="Guidance (1: none)", min_width=120)
    with gr.Accordion("More of the sampler", open=False), gr.Row():
        low, high = sampling.cfg_interval
        fields["low"] = gr.Number(low, label="Guidance from", info="time t, 0 is data", step=0.05, min_width=120)
        fields["high"] = gr.Number(high, label="Guidance to", info="time t, 1 is noise", step=0.05, min_width=120)
        fields["shift"] = gr.Number(sampling.shift, label="Shift", info="above 1: more steps at noise", min_width=120)
    files = [
        (part, name, text)
        for part, row in parts.items()
        for name, text in row.adapter.known_files.items()
        if name != "mask" and not (len(parts) == 1 and name in WHOLE)
    ]
    if files:
        needed = any(row.given for row in parts.values())
        with gr.Accordion("Give some of it", open=needed):
            for part, name, text in files:
                label = GIVEN.get(name, text[:1].upper() + text[1:])
                form.given[part, name] = _given(name, label if len(parts) == 1 else f"{part}: {label}")
    button = gr.Button("Generate", variant="primary")
    problem = gr.HTML()
    names, places = list(fields), list(form.given)

    def ask(state: dict[str, Any], *values: Any) -> tuple[str, dict[str, Any]]:
        held = dict(zip(names, values, strict=False))
        state = {**state, "forms": {**state["forms"], stream: held}}
        try:
            given = dict(zip(places, values[len(names) :], strict=True))
            job = studio.submit(request(studio, stream, held, given))
        except SelfFlowError as error:
            return view.message(str(error)), state
        return "", {**state, "jobs": [*state["jobs"], job.number][-100:]}

    button.click(
        ask,
        [kept, *fields.values(), *form.given.values()],
        [problem, kept],
        show_progress="hidden",
        api_visibility="private",
    )
    return form


def _given(name: str, label: str) -> Any:
    """What takes a file of one kind; actions and states are JSON files."""
    match name:
        case "image":
            brush = gr.Brush(default_size=24, colors=["#ffffff"], color_mode="fixed")
            return gr.ImageEditor(type="pil", label=label, sources=["upload"], brush=brush, layers=False, transforms=())
        case "first_frame":
            return gr.Image(type="filepath", label=label, sources=["upload"], height=200)
        case "video":
            return gr.Video(label=label, sources=["upload"], height=240)
        case "audio" | "continue":
            return gr.Audio(type="filepath", label=label, sources=["upload"], editable=False)
        case _:
            return gr.File(label=label, type="filepath")


def request(studio: Studio, stream: str, fields: dict[str, Any], given: dict[tuple[str, str], Any]) -> Request:
    """What the fields of a form ask for; uploads are kept in the output folder.

    Raises ConfigError for files that cannot be taken.
    """
    asked = fields.get("prompts") or []
    lines = [line.strip() for line in asked.splitlines()] if isinstance(asked, str) else list(asked)
    files: dict[str, str] = {}
    alone = len(studio.loaded.generator.parts[stream]) == 1
    for (part, name), value in given.items():
        if name == "image":
            image, mask = keep_painted(value, studio.out, "Image")
            if image is not None and mask is None and alone:
                raise ConfigError("Image: nothing is painted over it; paint what is to be made anew")
            files |= {key: f"{part}={path}" for key, path in (("image", image), ("mask", mask)) if path is not None}
        elif value:
            files[name] = f"{part}={keep(value, studio.out, GIVEN.get(name, name), studio.limits.megabytes)}"
    settings = {name: fields[name] for name in ("solver", "steps", "cfg_scale", "shift")}
    settings["cfg_interval"] = (fields["low"], fields["high"])
    return Request(
        stream,
        [line for line in lines if line],
        (fields.get("negative") or "").strip(),
        fields["number"],
        fields["seed"],
        settings,
        files,
    )


def _restored(forms: Sequence[Form], state: dict[str, Any]) -> list[Any]:
    """The fields of all forms as they were when the browser last asked for something; others stay as they are."""
    held = state.get("forms", {})
    return [
        held[form.stream][name] if name in held.get(form.stream, {}) else gr.skip()
        for form in forms
        for name in form.fields
    ]
