"""How the report looks: A4 on paper, light or dark on a screen; nothing is loaded."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root { --ink: #1a1a1a; --faint: #555; --line: #c9ced6; --paper: #fff; --page: #eef0f3;
  --head: #f2f4f7; --link: #0b57a4;
  --good: #1b6e3c; --good-back: #e9f5ee; --bad: #a11b1b; --bad-back: #fbeaea;
  --open: #7a4b00; --open-back: #fdf3e0; --none: #4b5563; --none-back: #eef0f3; }
* { box-sizing: border-box; }
html { font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: var(--ink); background: var(--page); -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 2.5rem 3rem; background: var(--paper); }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 2px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { margin: .5rem 0; }
p, li, td, th, dd, figcaption { overflow-wrap: anywhere; }
a { color: var(--link); }
a:focus-visible, .wide:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.faint { color: var(--faint); }
.small { font-size: .87rem; }
.verdict { border: 1px solid; border-left-width: .5rem; border-radius: .3rem;
  padding: .8rem 1.1rem; margin: 1.2rem 0; }
.verdict h2 { border: 0; margin: 0 0 .3rem; padding: 0; font-size: 1.15rem; }
.verdict p, .verdict li { color: var(--ink); }
.verdict ul { margin: .4rem 0; padding-left: 1.2rem; }
.passed { color: var(--good); background: var(--good-back); border-color: var(--good); }
.failed { color: var(--bad); background: var(--bad-back); border-color: var(--bad); }
.unclear { color: var(--open); background: var(--open-back); border-color: var(--open); }
.untested { color: var(--none); background: var(--none-back); border-color: var(--none); }
.badge { display: inline-block; border: 1px solid; border-radius: .25rem; padding: 0 .4rem;
  font-size: .82rem; font-weight: 600; white-space: nowrap; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; padding: 0; }
figure { margin: 1rem 0; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: .2rem; }
figcaption { color: var(--faint); font-size: .87rem; margin-top: .35rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .87rem; line-height: 1.4; }
caption { text-align: left; color: var(--faint); padding: 0 0 .4rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .5rem; text-align: left;
  vertical-align: top; }
thead th { background: var(--head); border-bottom: 2px solid var(--line); vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 8.5em; }
tbody th span { font-weight: 400; }
thead th { overflow-wrap: normal; }
td.words { min-width: 15em; }
th.group { background: var(--head); }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, .still { white-space: nowrap; overflow-wrap: normal; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; margin: .6rem 0;
  font-size: .93rem; }
dt, dd { margin: 0; padding: .22rem .6rem .22rem 0; border-bottom: 1px solid var(--line); }
dt { color: var(--faint); }
code { font: .92em ui-monospace, "SFMono-Regular", Consolas, "Liberation Mono", monospace; }
footer { margin-top: 2.5rem; padding-top: .8rem; border-top: 2px solid var(--line);
  color: var(--faint); font-size: .87rem; }
@media (max-width: 40rem) {
  body { padding: 1rem; }
  dl { grid-template-columns: 1fr; }
  dt { border-bottom: 0; padding-bottom: 0; }
}
@media screen and (prefers-color-scheme: dark) {
  :root { color-scheme: dark; --ink: #e6e8eb; --faint: #a5adb8; --line: #3c434d;
    --paper: #16191d; --page: #0d0f12; --head: #21262d; --link: #7db9ff;
    --good: #7fd6a0; --good-back: #12291c; --bad: #ff9d9d; --bad-back: #331515;
    --open: #f2c36b; --open-back: #2f2410; --none: #b6bec9; --none-back: #21262d; }
  figure img { padding: .3rem; }
}
@media print {
  html { font-size: 9.5pt; background: #fff; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  h2, h3, caption, p:has(+ figure), p:has(+ .wide) { break-after: avoid; }
  tr, figure, .verdict, dt, dd, li { break-inside: avoid; }
  p { break-inside: avoid; }
  thead { display: table-header-group; }
  tbody:first-of-type tr:first-child, tbody tr:nth-child(2) { break-before: avoid; }
  .wide { overflow: visible; }
  dt, dd { padding: .1rem .6rem .1rem 0; }
  footer { margin-top: 1.2rem; }
  .sheet { break-before: page; }
  a { color: inherit; text-decoration: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
@page { size: A4; margin: 16mm 15mm 17mm;
  @bottom-left { content: "SaliencyExplain report"; font: 8pt sans-serif; color: #555; }
  @bottom-right { content: counter(page) " / " counter(pages); font: 8pt sans-serif; color: #555; }
}
""".strip()
