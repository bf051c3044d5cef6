"""The style sheet of the report: light and dark by the reader's own setting, paper, phones."""

CSS = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1b1f24; --dim: #59636e; --line: #d5dae0;
  --soft: #f4f6f8; --dense: #0b62c4; --moe: #b45309; --other: #6d3fc0; --bad: #c01c28;
  --good: #1a7335; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171b; --fg: #e4e7ea; --dim: #9aa4ae;
  --line: #353c44; --soft: #1e2329; --dense: #62a8ff; --moe: #f2a045; --other: #bd9bff;
  --bad: #ff7b7b; --good: #5ccb7a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 50rem; padding: 1rem; background: var(--bg); color: var(--fg);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: .5rem 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, ul { margin: .4rem 0; } ul { padding-left: 1.2rem; }
code { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }
.verdict, .control { border: 1px solid var(--line); border-left: .5rem solid var(--good);
  border-radius: .3rem; padding: .6rem 1rem; background: var(--soft); }
.verdict.fail, .control.fail { border-left-color: var(--bad); }
.verdict strong { font-size: 1.5rem; color: var(--good); }
.verdict.fail strong, .control.fail strong, .fails { color: var(--bad); font-weight: 700; }
.control.fail strong { font-size: 1.2rem; }
.dim { color: var(--dim); }
.wide { overflow-x: auto; }
.tall { overflow: auto; max-height: 26rem; border: 1px solid var(--line); padding-left: .4rem; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--dim); font-weight: 600; position: sticky; top: 0;
  background: var(--bg); }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.short, td.fails { white-space: nowrap; } th.num { white-space: normal; }
figure { margin: .8rem 0; } figcaption { color: var(--dim); font-size: .9rem; }
svg { display: block; width: 100%; height: auto; }
svg.square { max-width: 34rem; } svg.square text { font-size: 16px; }
svg text { font-size: 14px; fill: var(--fg); paint-order: stroke; stroke: var(--bg);
  stroke-width: 4px; }
svg text.axis { fill: var(--dim); } svg text.bad { fill: var(--bad); }
@media (max-width: 34rem) { svg text, svg.square text { font-size: 20px; } body { padding: .7rem; }
  table { font-size: .85rem; } th, td { padding-right: .4rem; } }
.grid { stroke: var(--line); } .edge { stroke: var(--dim); }
.stem { stroke: var(--line); stroke-width: 2; }
.limit, .start { stroke: var(--bad); stroke-dasharray: 6 4; }
.identity { stroke: var(--dim); stroke-width: 1.5; }
.mark { stroke: var(--bg); } .dense { fill: var(--dense); } .moe { fill: var(--moe); }
.other { fill: var(--other); } .bar { fill: var(--dense); }
.strange { stroke: var(--bad); stroke-width: 3; fill: none; }
.widest { stroke: var(--bad); stroke-width: 2; fill: none; }
.dots { stroke: var(--dense); stroke-width: 5; stroke-linecap: round; stroke-opacity: .45;
  fill: none; }
@media print { :root { color-scheme: light; --bg: #fff; --fg: #000; --dim: #444; --line: #bbb;
  --soft: #f4f4f4; --dense: #0b62c4; --moe: #b45309; --other: #6d3fc0; --bad: #c01c28;
  --good: #1a7335; }
  .wide, .tall { max-height: none; overflow: visible; } thead th { position: static; }
  figure, tr, .verdict, .control { break-inside: avoid; } h2 { break-after: avoid; }
  body { font-size: 11pt; } }
"""
