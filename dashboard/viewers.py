"""Two viewers that Streamlit lacks: a slider between before and after with layers over it, and a player of frames.

Both are worked by mouse, touch and keyboard. Images come by URL; names are set as text.
"""

from __future__ import annotations

from typing import Any

import streamlit as st

_CSS = """
.viewer { font-family: var(--st-font); color: var(--st-text-color); width: 384px; max-width: 100%; }
.stage {
  position: relative; width: 100%; aspect-ratio: 1; border-radius: 4px; overflow: hidden; outline: 1px solid #8884;
}
.stage img {
  position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated;
}
.line {
  position: absolute; top: 0; bottom: 0; width: 2px; background: white; box-shadow: 0 0 3px black; pointer-events: none;
}
input[type=range] { width: 100%; margin: 8px 0 0; }
.row { display: flex; gap: 8px; align-items: center; flex-wrap: wrap; font-size: 14px; margin-top: 6px; }
.row span { min-width: 0; overflow-wrap: anywhere; }
button {
  font: inherit; color: inherit; background: transparent; border: 1px solid var(--st-border-color); border-radius: 6px;
  padding: 2px 10px; cursor: pointer;
}
button[aria-pressed=true] { border-color: var(--st-primary-color); color: var(--st-primary-color); }
"""

_SHARED = """
function element(tag, properties, parent) {
    const made = Object.assign(document.createElement(tag), properties);
    parent.appendChild(made);
    return made;
}
function root(component) {
    const { parentElement } = component;
    parentElement.querySelector('.viewer')?.remove();
    return element('div', { className: 'viewer' }, parentElement);
}
function range(parent, label, max, value) {
    const made = element('input', { type: 'range', min: 0, max, value }, parent);
    made.setAttribute('aria-label', label);
    return made;
}
"""

_COMPARE = """
export default function (component) {
    const { data } = component;
    const viewer = root(component), stage = element('div', { className: 'stage' }, viewer);
    const before = element('img', { src: data.before, alt: data.alt + ', before' }, stage);
    const after = element('img', { src: data.after, alt: data.alt + ', after' }, stage);
    const layer = element('img', { alt: '', hidden: true }, stage), line = element('div', { className: 'line' }, stage);
    const slider = range(viewer, 'before and after', 100, 50);
    const show = () => {
        after.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
        line.style.left = `calc(${slider.value}% - 1px)`;
    };
    slider.oninput = show;
    stage.onpointermove = (event) => {
        if (event.buttons) {
            const box = stage.getBoundingClientRect();
            slider.value = 100 * (event.clientX - box.left) / box.width;
            show();
        }
    };
    stage.onpointerdown = (event) => { event.preventDefault(); stage.onpointermove(event); };
    show();
    if (!data.layers.length) return;
    const row = element('div', { className: 'row' }, viewer);
    const strength = range(viewer, 'strength of the layer', 100, 70);
    strength.hidden = true;
    const buttons = data.layers.map((one) => element('button', { type: 'button', textContent: one.name }, row));
    buttons.forEach((button, index) => {
        button.setAttribute('aria-pressed', 'false');
        button.onclick = () => {
            const on = button.getAttribute('aria-pressed') !== 'true';
            buttons.forEach((other) => other.setAttribute('aria-pressed', String(on && other === button)));
            layer.hidden = strength.hidden = !on;
            if (on) { layer.src = data.layers[index].url; layer.alt = data.layers[index].name; }
        };
    });
    strength.oninput = () => { layer.style.opacity = strength.value / 100; };
    layer.style.opacity = 0.7;
}
"""

_PLAY = """
export default function (component) {
    const { data } = component;
    const viewer = root(component), stage = element('div', { className: 'stage' }, viewer);
    const picture = element('img', {}, stage);
    const slider = range(viewer, 'step', data.frames.length - 1, data.first);
    const row = element('div', { className: 'row' }, viewer);
    const button = element('button', { type: 'button', textContent: 'Play' }, row);
    const label = element('span', {}, row);
    data.frames.forEach((frame) => { new Image().src = frame.url; });
    const show = () => {
        const frame = data.frames[slider.value];
        Object.assign(picture, { src: frame.url, alt: frame.label });
        label.textContent = frame.label;
    };
    let timer = null;
    const stop = () => { clearInterval(timer); timer = null; button.textContent = 'Play'; };
    button.onclick = () => {
        if (timer) { stop(); return; }
        if (Number(slider.value) === data.frames.length - 1) slider.value = 0;
        show();
        button.textContent = 'Pause';
        timer = setInterval(() => {
            slider.value = Number(slider.value) + 1;
            show();
            if (Number(slider.value) === data.frames.length - 1) stop();
        }, 250);
    };
    slider.oninput = () => { stop(); show(); };
    show();
    return stop;
}
"""

_compare = st.components.v2.component("audit_before_after", css=_CSS, js=_SHARED + _COMPARE)
_play = st.components.v2.component("audit_player", css=_CSS, js=_SHARED + _PLAY)


def before_after(before: str, after: str, layers: dict[str, str], alt: str, key: str) -> None:
    """Two images, by their ids, one over the other with a slider between; `layers` by name to lay over both."""
    data: dict[str, Any] = {"before": url(before), "after": url(after), "alt": alt}
    data["layers"] = [{"name": name, "url": url(image_id)} for name, image_id in layers.items()]
    _compare(data=data, key=key)


def player(frames: list[tuple[str, str]], first: int, key: str) -> None:
    """Frames, as image ids and labels, to be played or stepped through; begins at `first`."""
    data = {"frames": [{"url": url(image_id), "label": label} for image_id, label in frames], "first": first}
    _play(data=data, key=key)


def url(image_id: str) -> str:
    """Where the report's server has an evidence image."""
    return f"/evidence/{image_id}"
