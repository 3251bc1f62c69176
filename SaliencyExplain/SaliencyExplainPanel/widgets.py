"""Small functions for Qt widgets, so that the sections read as what they mean."""

import contextlib

import qt

NODE_CHANGED = "currentNodeChanged(vtkMRMLNode*)"


@contextlib.contextmanager
def quiet(*widgets):
    """The widgets' signals are off inside."""
    before = [widget.blockSignals(True) for widget in widgets]
    try:
        yield
    finally:
        for widget, blocked in zip(widgets, before, strict=True):
            widget.blockSignals(blocked)


def data_of(box, index):
    """Text that belongs to an item of a combo box; "" for none, however the binding says so."""
    return (box.itemData(index) or "") if index >= 0 else ""


def select(box, data):
    """Choose an item of a combo box by what belongs to it; none if it is missing."""
    found = [index for index in range(box.count) if data_of(box, index) == data]
    index = found[0] if found else -1
    if box.currentIndex != index:
        box.setCurrentIndex(index)
    return index


def fill(box, items, current):
    """Show (text, data) items in a combo box and choose one by its data; none if it is missing.

    Only what differs is touched, so that an open list stays open.
    """
    with quiet(box):
        if items_of(box) != list(items):
            box.clear()
            for text, data in items:
                box.addItem(text, data)
        select(box, current)


def items_of(box):
    """(text, data) of a combo box's items."""
    return [(box.itemText(index), data_of(box, index)) for index in range(box.count)]


def set_text(edit, text):
    """Set a line edit's text unless it has it: setting it moves the cursor to the end."""
    if edit.text != text:
        with quiet(edit):
            edit.text = text


def show_row(visible, *widgets):
    """Show or hide a label and its field."""
    for widget in widgets:
        widget.visible = visible


def later(slot):
    """Call when Qt is back from the present signal: a widget must not be deleted inside its own."""
    qt.QTimer.singleShot(0, slot)


def choose_file(title, filters=""):
    """Path of an existing file, or ""."""
    return _chosen(qt.QFileDialog.getOpenFileName(_window(), title, "", filters))


def choose_folder(title):
    """Path of an existing folder, or ""."""
    return _chosen(qt.QFileDialog.getExistingDirectory(_window(), title))


def duration(seconds):
    """Seconds as people read them: 0:07, 12:30, 1:05:00."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _window():
    import slicer

    return slicer.util.mainWindow()


def _chosen(answer):
    # PythonQt gives the path, other bindings the path and the filter.
    return answer if isinstance(answer, str) else (answer[0] if answer else "")
