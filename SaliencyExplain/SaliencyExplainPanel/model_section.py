"""Model: its path, what it is, and whether it may run the code that it carries."""

import re
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _

import SaliencyExplainLib
from SaliencyExplainLib import worker

from . import asking, settings
from . import parameters as asked_for
from .predicting import Predicting
from .runner import problem_of
from .widgets import choose_file, choose_folder, set_text

#: Several models name their empty class so; it is not what one asks about first.
_BACKGROUND = "background"


class ModelSection:
    """Loads a model in the worker and keeps what it said in the parameter node."""

    def __init__(self, ui, panel, demo):
        self.ui, self._panel, self._demo = ui, panel, demo
        # Hash that each path was trusted with; the settings remember hashes, not paths.
        self._trusted = {}
        self.layers = []
        self._layersOf = None
        self.defaultLayers = {}
        # By hand: until Slicer 5.10 a bound line edit moves its cursor to the end at each letter.
        for edit, name in (
            (ui.modelPathLineEdit, "modelPath"),
            (ui.modelLabelsLineEdit, "modelLabels"),
            (ui.modelChannelsLineEdit, "modelChannels"),
        ):
            edit.connect("textChanged(QString)", lambda text, name=name: self._onText(name, text))
        ui.modelFileButton.connect("clicked(bool)", self._onFile)
        ui.modelFolderButton.connect("clicked(bool)", self._onFolder)
        ui.loadModelButton.connect("clicked(bool)", lambda checked=False: self.load())
        ui.predictButton.connect("clicked(bool)", lambda checked=False: self.predict())
        ui.loadDemoButton.connect("clicked(bool)", lambda checked=False: self.loadDemo())
        self._recent = qt.QMenu(ui.modelRecentButton)
        self._recent.connect("aboutToShow()", self._listRecent)
        ui.modelRecentButton.setMenu(self._recent)

    def show(self, parameters):
        ui = self.ui
        set_text(ui.modelPathLineEdit, parameters.modelPath)
        ui.predictButton.visible = asked_for.model_card(parameters).get("task") == "segmentation"
        set_text(ui.modelLabelsLineEdit, parameters.modelLabels)
        set_text(ui.modelChannelsLineEdit, parameters.modelChannels)
        card = asked_for.model_card(parameters)
        if card:
            ui.modelInfoLabel.text = card_text(card)
        elif parameters.modelPath:
            ui.modelInfoLabel.text = _("Not loaded yet.")
        else:
            ui.modelInfoLabel.text = _("No model is chosen.")

    def source(self, parameters):
        """The model as the worker wants it."""
        return self.sourceOf(parameters.modelPath, asked_for.model_options(parameters))

    def sourceOf(self, path, options):
        """A model by its path, and what its file does not say."""
        path, device = path.strip(), settings.device()
        return worker.ModelSource(
            path,
            trusted_sha256=self._trusted.get(path, ""),
            options={**options, "device": device} if device else dict(options),
        )

    def load(self, trusted=None):
        """Load the model of the path.

        :param trusted: answer to the question whether the file may run code; None asks.
        """
        panel = self._panel
        parameters = panel.parameters
        if parameters is None or panel.runner.busy:
            return
        if not parameters.modelPath.strip():
            panel.report(_("No model is named. Choose a file or a folder first."))
            return
        if not panel.ensurePackages():
            return
        panel.log(_("Loading {path}").format(path=parameters.modelPath))
        panel.runner.load(
            self.source(parameters),
            self._onLoaded,
            lambda problem: self.retryTrusted(problem, self.load, trusted),
        )

    def loadDemo(self):
        """Load the sample brain, unless it is there, and the demo model, which holds no code."""
        parameters = self._panel.parameters
        if parameters is None or self._panel.runner.busy:
            return
        try:
            volume, segmentation = self._demo.load()
        except Exception as error:  # Slicer's readers raise RuntimeError and more
            self._panel.report(
                _("The sample brain could not be loaded: {error}").format(error=error)
            )
            return
        parameters.inputVolume = volume
        if parameters.segmentation is None:
            parameters.segmentation = segmentation
        self.setPath(str(self._demo.model))
        self.load()

    def predict(self, trusted=None):
        """Let the model segment the volume; the segmentation is then chosen under Inputs."""
        panel, parameters = self._panel, self._panel.parameters
        volumes = asking.channel_nodes(parameters)
        if panel.runner.busy or None in volumes or not panel.ensurePackages():
            return
        try:
            run = Predicting(volumes, self.source(parameters), asking.model_name(parameters))
        except Exception as error:  # no space for its files
            panel.report(problem_of(error).text)
            return
        panel.runner.run(
            run,
            self._onPredicted,
            lambda problem: self.retryTrusted(problem, self.predict, trusted),
        )

    def retryTrusted(self, problem, again, trusted=None):
        """Show a problem; where the file only lacks trust, ask for it and go on.

        :param again: called when trust was given.
        """
        trust = problem.trust
        if trust is None:
            self._panel.report(problem.text, problem.details)
            return
        question = _(
            "{reason}\n\nA program can do anything that you can do on this computer. Go on only if "
            "you know where the file comes from.\n\nFile: {path}\nSHA-256: {sha256}\n\nTrust it?"
        ).format(reason=for_people(trust.reason), path=trust.path, sha256=trust.sha256)
        if trusted is None:
            # Asked again although it was told the hash: no answer of the settings helps.
            known = settings.is_trusted(trust.sha256)
            told = self._trusted.get(trust.path.strip()) == trust.sha256
            trusted = (known and not told) or slicer.util.confirmYesNoDisplay(question)
        if not trusted:
            self._panel.say(_("The model was not trusted, so it was not loaded."))
            return
        self._trusted[trust.path.strip()] = trust.sha256
        settings.trust(trust.sha256)
        again()

    def setPath(self, path):
        """Choose a model; what is known of another one goes."""
        parameters = self._panel.parameters
        if parameters is not None and path != parameters.modelPath:
            parameters.modelPath = path

    def askLayers(self):
        """List the model's layers for the picker, once a model."""
        parameters = self._panel.parameters
        card = asked_for.model_card(parameters)
        if not card or card.get("scripted") or self._panel.runner.busy:
            return
        key = (parameters.modelPath, card.get("sha256"))
        if self._layersOf == key:
            return
        self._layersOf, self.layers, self.defaultLayers = key, [], {}
        shape = layer_shape(card)
        methods = SaliencyExplainLib.methods()
        names = tuple(name for name, one in methods.items() if one.needs_layer)
        request = worker.Layers(self.source(parameters), shape=shape, methods=names)
        # Without them a layer's name can still be typed.
        self._panel.runner.ask(request, self._onLayers, lambda problem: None)

    def forget(self):
        """Layers of the last model are another's."""
        self._layersOf, self.layers, self.defaultLayers = None, [], {}

    def _onLayers(self, value):
        self.layers = value["layers"]
        self.defaultLayers = value.get("defaults") or {}
        self._panel.refresh()

    def _onLoaded(self, value):
        panel, parameters = self._panel, self._panel.parameters
        with slicer.util.NodeModify(parameters.parameterNode):
            asked_for.set_model_card(parameters, kept_card(value))
            labels = value.get("labels") or []
            if parameters.outputName not in labels:
                parameters.outputName = first_output(labels)
        settings.remember_model(parameters.modelPath.strip())
        self.forget()
        panel.say(_("The model is loaded."))
        panel.log(value.get("text", ""))
        panel.refresh()

    def _onPredicted(self, segmentation):
        self._panel.parameters.segmentation = segmentation
        self._panel.say(_("Done: {name}").format(name=segmentation.GetName()))

    # Slots

    def _onText(self, name, text):
        parameters = self._panel.parameters
        if parameters is not None and parameters.getValue(name) != text:
            parameters.setValue(name, text)

    def _onFile(self, checked=False):
        filters = _("Models (*.zip *.ts *.pt *.pth *.pt2 *.safetensors);;All files (*)")
        self._choose(choose_file(_("Model file"), filters))

    def _onFolder(self, checked=False):
        self._choose(choose_folder(_("Folder of a MONAI bundle or of nnU-Net")))

    def _listRecent(self):
        self._recent.clear()
        paths = recent_models()
        if not paths:
            self._recent.addAction(_("None yet")).setEnabled(False)
        for path in paths:
            action = self._recent.addAction(path)
            action.connect("triggered(bool)", lambda checked, path=path: self._choose(path))

    def _choose(self, path):
        if path:
            self.setPath(path)
            self.load()


def kept_card(value):
    """The part of the worker's answer that the panel shows; the rest would swell the scene."""
    names = (
        "task", "labels", "channels", "parameters", "spacing_mm", "window", "scripted", "device",
        "format", "name", "sha256", "preprocessing", "inference", "input_channels",
    )  # fmt: skip
    return {name: value.get(name) for name in names}


def card_text(card):
    """What a model is, in a few lines for people."""
    lines = [
        _("{task}, {count} classes, {name} ({format})").format(
            task=str(card.get("task") or "").capitalize(),
            count=len(card.get("labels") or []),
            name=card.get("name") or "",
            format=card.get("format") or "",
        ),
        _("Classes: {names}").format(names=_listed(card.get("labels"))),
        _("Channels: {names}").format(names=_listed(card.get("channels"))),
    ]
    spacing = card.get("spacing_mm")
    if spacing:
        size = " x ".join(f"{one:g}" for one in spacing)
        lines.append(_("Spacing: {size} mm").format(size=size))
    if card.get("parameters"):
        lines.append(_("Parameters: {count:,}").format(count=card["parameters"]))
    if card.get("sha256"):
        lines.append(_("SHA-256: {start}...").format(start=card["sha256"][:16]))
    return "\n".join(lines)


def first_output(labels):
    """Class to begin with: the first that is no background."""
    others = [label for label in labels if label.lower() != _BACKGROUND]
    return (others or labels or [""])[0]


def layer_shape(card):
    """A shape (C, I, J, K) on which the layers can be listed."""
    window = [size if size > 0 else 64 for size in card.get("window") or (64, 64, 64)]
    return [len(card.get("channels") or []) or card.get("input_channels") or 1, *window]


def for_people(reason):
    """Why a file is not trusted, without the advice for a shell."""
    sentences = re.split(r"(?<=\.) ", reason)
    return " ".join(one for one in sentences if "trusted=" not in one)


def recent_models():
    """Models that were loaded here and are still there."""
    return [path for path in settings.recent_models() if Path(path).exists()]


def _listed(names):
    shown = list(names or [])
    if not shown:
        return _("not named")
    more = _(" and {count} more").format(count=len(shown) - 12) if len(shown) > 12 else ""
    return ", ".join(shown[:12]) + more
