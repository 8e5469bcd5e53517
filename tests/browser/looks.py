"""What may be wrong with how a page looks: scripts that ask the page itself."""

from typing import Final

TARGET_MIN_PX: Final = 44
"""The least width and height of whatever can be pressed."""

TEXT_CONTRAST_MIN: Final = 4.5
"""WCAG AA, for text of any size."""

SMALL_TARGETS: Final = """(min) =>
    [...document.querySelectorAll("a[href], button, input, textarea")]
    .filter((target) => target.checkVisibility({ visibilityProperty: true }))
    // A link inside a text is excepted by WCAG 2.5.8; "skip" shows itself when it has the focus.
    .filter((target) => !target.closest(".text") && target.id !== "skip")
    .map((target) => [target.id || target.textContent, target.getBoundingClientRect()])
    .filter(([, { width, height }]) => width < min || height < min)
    .map(([name, { width, height }]) => `${name}: ${width} x ${height}`)"""
"""For `TARGET_MIN_PX`: what is smaller than that."""

FAINT_TEXTS: Final = """(min) => {
    const parse = (color) => color.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b]
        .map((part) => part / 255)
        .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
        .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
    const background = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            if ((color[3] ?? 1) === 1) return color;
        }
        return [255, 255, 255];
    };
    const faint = [];
    for (const element of document.querySelectorAll("body *")) {
        const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!own || !element.checkVisibility({ visibilityProperty: true })) continue;
        const light = luminance(parse(getComputedStyle(element).color));
        const dark = luminance(background(element));
        const ratio = (Math.max(light, dark) + 0.05) / (Math.min(light, dark) + 0.05);
        if (ratio < min) faint.push(`${element.textContent.trim()}: ${ratio.toFixed(2)}`);
    }
    return faint;
}"""
"""For `TEXT_CONTRAST_MIN`: texts that stand out less from what is behind them."""
