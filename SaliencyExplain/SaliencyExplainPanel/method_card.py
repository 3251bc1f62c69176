"""What a method is, as text for people; from its declaration, without torch."""

import html

from slicer.i18n import tr as _


def card(method, values=None):
    """Rich text: what it answers, what it costs with these values, and where it misleads."""
    facts = [_("signed") if method.signed else _("unsigned"), cost(method, values)]
    if method.needs_layer:
        facts.append(_("looks into a layer"))
    return _("{summary}<br><i>{facts}</i><br>Mind: {weaknesses}.<br>{paper}").format(
        summary=html.escape(method.summary),
        facts=html.escape(", ".join(facts)),
        weaknesses=html.escape(method.weaknesses),
        paper=html.escape(method.paper),
    )


def cost(method, values=None):
    """How many sweeps over the volume it takes."""
    try:
        passes = method(**(values or {})).passes()
    except Exception:  # a value that does not fit is told when it is entered
        passes = None
    if passes is None:
        return _("passes depend on the volume")
    return _("1 pass") if passes == 1 else _("{count} passes").format(count=passes)


def matches(method, text):
    """Whether every word is found in the method's name, title, family, summary or paper."""
    everything = " ".join(
        (method.name, method.title, method.family, method.summary, method.paper)
    ).lower()
    return all(word in everything for word in text.lower().split())
