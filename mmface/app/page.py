"""The page's layout: the controls, where they stand, and which handler each of them calls."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from mmface.app.canvas import paint_canvas
from mmface.app.handlers import Handlers
from mmface.app.painting import PAINTED, class_colors, example_value, kinds_of
from mmface.app.running import MAX_GUIDANCE, MAX_PICTURES, MAX_SEED, MAX_STEPS, MAX_STRENGTH
from mmface.conditions import condition_kinds, kinds_in_words
from mmface.sampling.blending import VARIATION_STRENGTH

STYLE = Path(__file__).with_name("theme.css")
MAX_WAITING = 32
CACHE_SECONDS = (1800, 7200)
"""How often pictures that the page showed are looked over, and from which age they are removed."""

ABOUT = dict.fromkeys(
    ("tiny-flow", "tiny-ddpm"), ", trained on rendered faces: it draws, it makes no photographs"
)
"""What a built-in model is, for the line below the title."""

_PICTURES = ["image"]
_MODEL: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_LEFT = "Left and right are the subject's own: the left eye is on the picture's right."


def theme() -> gr.themes.Base:
    """Give the theme; its fonts are the system's own, so that nothing is downloaded."""
    return gr.themes.Base(
        primary_hue="blue",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400")


class Page:
    """The components of one page; the names are those that handlers answer with."""

    def __init__(self, handlers: Handlers, title: str) -> None:
        self.handlers = handlers
        self.guidance_scale = float(handlers.maker.model.pipeline.config.guidance_scale)
        with gr.Blocks(
            title="mmface", analytics_enabled=False, delete_cache=CACHE_SECONDS
        ) as self.blocks:
            side = handlers.maker.size
            gr.HTML(
                f"<h1>mmface</h1><p>Faces from {kinds_in_words(' or ')}, plus a prompt. "
                f"Model: {title}, {side} x {side} pixels{ABOUT.get(title, '')}.</p>",
                elem_classes="app-title",
            )
            self.runs, self.chosen = gr.State([]), gr.State(0)
            self.start = gr.State(None)
            with gr.Row(equal_height=False, elem_classes="sides"):
                with gr.Column(scale=7, min_width=320):
                    self._lay_out_conditions()
                with gr.Column(scale=4, min_width=320):
                    self._lay_out_prompt()
                    self._lay_out_results()
            self._lay_out_comparison()
            self._lay_out_endpoint()
            self._connect_live()
            self._connect_conditions()
            self._connect_start()
            self._connect_runs()

    def _lay_out_conditions(self) -> None:
        titles = [(kind.name.capitalize(), kind.name) for kind in condition_kinds()]
        painted = [each for each in titles if each[1] in PAINTED]
        others = [each for each in titles if each[1] not in PAINTED]
        self.mode = gr.Radio(
            [*painted, (" and ".join(PAINTED).capitalize(), "both"), *others],
            value=next(iter(PAINTED)),
            label="Condition",
            elem_id="mode",
        )
        first = self.handlers.examples[0]
        with gr.Row(equal_height=False, elem_id="easel"):
            with gr.Column(scale=5, min_width=160) as self.mask_part:
                self.mask = paint_canvas(
                    "mask", "Mask", class_colors(), "#000000", 40, example_value(first)
                )
            with gr.Column(visible=False, scale=5, min_width=160) as self.sketch_part:
                colors = {"pencil": "#202020", "paper": "#ffffff"}
                self.sketch = paint_canvas("sketch", "Sketch", colors, "#ffffff", 4)
            with gr.Column(scale=3, min_width=110, elem_id="live"):
                self.live = gr.HTML(
                    "",
                    elem_id="live-face",
                    html_template="<img alt='Live face' src='${value}'>",
                )
        self.live_note = gr.HTML("", elem_id="live-note", min_height=28)
        self.mask_note = gr.HTML(f"<p class='run-note'>{_LEFT}</p>", elem_id="mask-note")
        gr.HTML("<p class='run-note'>Or start from an example, which brings its prompt:</p>")
        self.examples = gr.Gallery(
            [str(example.path) for example in self.handlers.examples],
            label="Examples",
            show_label=False,
            columns=6,
            rows=1,
            height="auto",
            allow_preview=False,
            object_fit="contain",
            interactive=False,
            buttons=[],
            elem_id="examples",
        )
        with gr.Row():
            self.mask_file = gr.UploadButton("Upload a mask", file_types=_PICTURES, size="sm")
            self.sketch_file = gr.UploadButton(
                "Upload a sketch", file_types=_PICTURES, size="sm", visible=False
            )
            self.photo = gr.UploadButton("Take it from a photo", file_types=_PICTURES, size="sm")
        self.classes = gr.HTML("", elem_id="classes")
        self.given: dict[str, Any] = {"mask": self.mask, "sketch": self.sketch}
        self.parts = {
            "mask": [self.mask_part, self.mask_file, self.mask_note, self.classes],
            "sketch": [self.sketch_part, self.sketch_file],
        }
        for title, name in others:
            with gr.Column(visible=False) as part:
                self.given[name] = gr.File(
                    label=title, file_types=_PICTURES, elem_id=f"{name}-file"
                )
            self.parts[name] = [part]
        self._lay_out_start()

    def _lay_out_start(self) -> None:
        with gr.Accordion("Vary or edit a picture", open=False, elem_id="start-part") as part:
            gr.Markdown(
                "Start from a face instead of from noise. Paint over a part of it to make only "
                "that part anew; every pixel outside stays as it is."
            )
            with gr.Row():
                self.start_face = gr.Button("Use the selected face", size="sm")
                self.start_file = gr.UploadButton(
                    "Upload a picture", file_types=_PICTURES, size="sm"
                )
                self.start_none = gr.Button("Start from noise again", size="sm")
            self.distance = gr.Slider(
                0.05,
                1,
                value=VARIATION_STRENGTH,
                step=0.05,
                label="How far to go from it",
                info="Small keeps the picture, 1 makes it anew.",
            )
            with gr.Column(visible=False) as self.region_part:
                self.region = paint_canvas(
                    "region", "Region to make anew", {"anew": "#ff3d9a"}, "", 64
                )
        self.start_part = part

    def _lay_out_prompt(self) -> None:
        self.prompt = gr.Textbox(
            value=self.handlers.examples[0].prompt,
            label="Prompt",
            placeholder="a woman with long, wavy red hair in a green sweater, blue background",
            lines=3,
            max_length=2000,
            elem_id="prompt",
        )
        with gr.Row(elem_id="run-bar"):
            self.go = gr.Button("Generate", variant="primary", scale=2, elem_id="generate")
            self.cancel = gr.Button(
                "Cancel",
                variant="stop",
                scale=1,
                min_width=90,
                interactive=False,
                elem_id="cancel",
            )
        with gr.Accordion("Settings", open=False):
            self.negative = gr.Textbox(value="", label="Negative prompt", max_length=2000)
            self.num = gr.Slider(1, MAX_PICTURES, value=2, step=1, label="Pictures")
            self.steps = gr.Slider(1, MAX_STEPS, value=25, step=1, label="Steps")
            self.guidance = gr.Slider(
                0,
                MAX_GUIDANCE,
                value=self.guidance_scale,
                step=0.5,
                label="Guidance",
                info="How much the prompt counts; 1 is none extra.",
            )
            self.condition_strength = gr.Slider(
                0,
                MAX_STRENGTH,
                value=1,
                step=0.05,
                label="Condition strength",
                info="How strongly the conditions bind; 1 is as trained.",
            )
            with gr.Row():
                self.seed = gr.Number(
                    value=0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", elem_id="seed"
                )
                self.seeding = gr.Radio(["keep", "random"], value="random", label="Seed of a run")

    def _lay_out_results(self) -> None:
        self.status = gr.HTML(
            "<p class='run-note'>Painting redraws the live face; Generate makes fine ones.</p>",
            elem_id="status",
            min_height=40,
        )
        self.gallery = gr.Gallery(
            label="Faces",
            columns=2,
            object_fit="contain",
            format="png",
            interactive=False,
            buttons=["download", "fullscreen"],
            height="auto",
            elem_id="faces",
        )
        self.download = gr.DownloadButton(
            "Download all, with their conditions", interactive=False, size="sm"
        )
        with gr.Accordion("How well the selected face follows its condition", open=True):
            self.report = gr.HTML(
                "<p class='run-note'>Appears with the first face: agreement by class, and the "
                "wanted contours drawn on the face.</p>",
                elem_id="report",
            )

    def _lay_out_comparison(self) -> None:
        with gr.Accordion("Compare two runs", open=False, elem_id="compare-part"):
            with gr.Row():
                self.left = gr.Dropdown([], label="Left run", type="value")
                self.right = gr.Dropdown([], label="Right run", type="value")
                self.compare = gr.Button("Compare", scale=0, min_width=120)
            with gr.Row():
                options: dict[str, Any] = {
                    "columns": 2,
                    "format": "png",
                    "interactive": False,
                    "buttons": [],
                }
                self.left_faces = gr.Gallery(label="Left", object_fit="contain", **options)
                self.right_faces = gr.Gallery(label="Right", object_fit="contain", **options)
            self.differences = gr.HTML("")

    def _lay_out_endpoint(self) -> None:
        """Put the endpoint `/sample` into the page, for programs; nothing of it is visible."""
        names = [kind.name for kind in condition_kinds()]
        with gr.Row(visible=False):
            inputs = [
                gr.Textbox(value="", label="prompt"),
                *(gr.File(label=name) for name in names),
                gr.Textbox(value="", label="negative"),
                gr.Number(value=25, label="steps"),
                gr.Number(value=self.guidance_scale, label="guidance"),
                gr.Number(value=1, label="condition_strength"),
                gr.Number(value=0, label="seed"),
                gr.Number(value=1, label="num"),
            ]
            outputs = [gr.File(label="faces", file_count="multiple"), gr.JSON(label="adherence")]
            gr.Button("sample").click(
                self._endpoint(names), inputs, outputs, api_name="sample", **_MODEL
            )

    def _endpoint(self, names: Sequence[str]) -> Callable[..., Any]:
        """Give the endpoint's function, which has a parameter for each kind of condition."""
        sample = self.handlers.sample

        def endpoint(prompt: str, *values: Any) -> Any:
            files = dict(zip(names, values, strict=False))
            return sample(prompt, files, *values[len(names) :])

        parameters = dict(inspect.signature(sample).parameters)
        files = parameters["files"]
        own = [files.replace(name=name, annotation=str | None) for name in names]
        prompt, _, *rest = parameters.values()
        endpoint.__signature__ = inspect.Signature([prompt, *own, *rest])  # type: ignore[attr-defined]
        endpoint.__annotations__ = {"request": gr.Request}
        endpoint.__doc__ = sample.__doc__
        return endpoint

    def _connect_live(self) -> None:
        """Redraw the live face at each change; of several at once, the last is painted.

        The list of classes follows the face, which would wait for it otherwise.
        """
        controls = [self.mode, *self.given.values(), self.prompt]
        inputs = [*controls, self.condition_strength, self.seed]

        def live(request: gr.Request, *values: Any) -> tuple[Any, str]:
            mode, *shown, prompt, strength, seed = values
            given = dict(zip(self.given, shown, strict=True))
            visitor = str(request.session_hash)
            return self.handlers.live(mode, given, prompt, strength, seed, visitor)

        changes = [each.change for each in controls]
        shown: dict[str, Any] = {
            "queue": False,
            "show_progress": "hidden",
            "trigger_mode": "always_last",
            **_PRIVATE,
        }
        gr.on(
            [self.blocks.load, *changes, self.condition_strength.change, self.seed.input],
            live,
            inputs,
            [self.live, self.live_note],
            **shown,
        ).then(self.handlers.show_classes, self.mask, self.classes, **shown)

    def _connect_conditions(self) -> None:
        handlers = self.handlers
        shown: dict[str, Any] = {"show_progress": "hidden", **_PRIVATE}
        parts = [(name, part) for name, own in self.parts.items() for part in own]

        def switch(mode: str) -> list[Any]:
            return [gr.update(visible=name in kinds_of(mode)) for name, _ in parts]

        self.mode.change(switch, self.mode, [part for _, part in parts], **shown)
        self.examples.select(
            handlers.take_example,
            None,
            [self.mode, *self.given.values(), self.prompt],
            **shown,
        )
        self.mask_file.upload(
            handlers.upload_mask, self.mask_file, [self.mask, self.mask_note], **shown
        )
        self.sketch_file.upload(handlers.upload_sketch, self.sketch_file, self.sketch, **shown)
        self.photo.upload(
            handlers.upload_photo,
            [self.photo, self.mode],
            [self.mask, self.sketch, self.mask_note],
            **shown,
            **_MODEL,
        )

    def _connect_start(self) -> None:
        handlers = self.handlers
        shown: dict[str, Any] = {"show_progress": "hidden", **_PRIVATE}
        outputs = [self.start, self.region]

        def reveal(start: Image.Image | None) -> Any:
            return gr.update(visible=start is not None)

        def forget() -> tuple[None, str]:
            return None, ""

        for event in (
            self.start_file.upload(handlers.upload_start, self.start_file, outputs, **shown),
            self.start_face.click(
                handlers.start_from_face, [self.runs, self.chosen], outputs, **shown
            ),
            self.start_none.click(forget, None, outputs, **shown),
        ):
            event.then(reveal, self.start, self.region_part, **shown)

    def _connect_runs(self) -> None:
        handlers = self.handlers
        numbers = [self.steps, self.guidance, self.condition_strength, self.num, self.seed]
        inputs = [self.mode, *self.given.values(), self.prompt, self.negative, *numbers]
        inputs += [self.seeding, self.start, self.distance, self.region, self.runs]
        names = ("status", "gallery", "report", "runs", "chosen", "seed", "download")
        parts = {name: getattr(self, name) for name in (*names, "left", "right", "cancel")}

        def generate(request: gr.Request, *values: Any) -> Iterator[dict[Any, Any]]:
            mode, *rest = values
            given = dict(zip(self.given, rest, strict=False))
            prompt, negative, *rest = rest[len(given) :]
            told = handlers.generate(
                mode,
                given,
                prompt,
                negative,
                tuple(rest[:6]),
                tuple(rest[6:9]),
                rest[9],
                request,
            )
            for each in told:
                yield {parts[name]: value for name, value in each.items()}

        on, off = (functools.partial(gr.update, interactive=each) for each in (True, False))
        now: dict[str, Any] = {"queue": False, "show_progress": "hidden", **_PRIVATE}
        # Before the run: the browser asks for a click's second event when the first has ended.
        self.go.click(lambda: on(), None, self.cancel, **now)
        # Unwrapped: a type checker's wrapper would hide from gradio that this is a generator.
        run = self.go.click(
            inspect.unwrap(generate),
            inputs,
            list(parts.values()),
            show_progress_on=self.status,
            show_progress="minimal",
            **_MODEL,
            **_PRIVATE,
        )
        run.then(lambda: off(), None, self.cancel, **now)
        self.cancel.click(
            handlers.cancel, None, self.status, cancels=[run], queue=False, api_name="cancel"
        ).then(lambda: off(), None, self.cancel, **now)
        self.gallery.select(handlers.choose_face, self.runs, [self.chosen, self.report], **_PRIVATE)
        self.compare.click(
            handlers.compare,
            [self.runs, self.left, self.right],
            [self.left_faces, self.right_faces, self.differences],
            **_PRIVATE,
        )
        self.blocks.unload(handlers.leave)
