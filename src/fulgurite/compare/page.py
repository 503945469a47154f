"""The fixed parts of the page of a comparison: its style sheet, and how to read it."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1c2024; --soft: #5d6670; --line: #e3e6ea;
  --good: #0b6b3a; --bad: #a8281e; --same: #1f5fa8; --plain: #5d6670; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: break-word; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0 0 20px; font-size: 2rem; line-height: 1.2; }
h2 { margin: 0 0 10px; font-size: 1.25rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 20px 24px; margin: 0 0 18px; }
section > p { margin: 0 0 12px; color: var(--soft); }
.beside { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 28px; align-items: start; }
img { display: block; width: 100%; height: auto; border-radius: 6px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px 28px; margin: 0 0 16px; }
dl div:nth-child(n+4) { grid-column: 1 / -1; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; }
code { font: .9em/1.5 ui-monospace, monospace; }
.bars { max-width: 760px; margin: 0 0 14px; }
.scroll { overflow-x: auto; margin: 0 0 18px; }
.scroll:last-child { margin-bottom: 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 6px; }
th, td { text-align: left; vertical-align: top; padding: 7px 16px 7px 0; border-top: 1px solid var(--line); }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .85rem; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 8em; }
b { display: block; font-weight: 600; }
small { display: block; color: var(--soft); font-weight: 400; white-space: nowrap; }
.runs td small:not(:empty) { white-space: normal; width: max-content; min-width: 22ch; max-width: 46ch;
  }
.guide ul { columns: 24rem 2; column-gap: 44px; } .guide li { break-inside: avoid; margin: 0 0 10px; }
.name { display: flex; gap: 8px; align-items: baseline; }
.name i { flex: none; width: 10px; height: 10px; border-radius: 3px; }
em { display: inline-block; font-style: normal; font-size: .82rem; font-weight: 600; white-space: nowrap; color: var(--plain); }
em.good { color: var(--good); } em.bad { color: var(--bad); } em.same { color: var(--same); }
ul { margin: 0; padding-left: 20px; } li { margin: 4px 0; max-width: 85ch; }
@media (max-width: 900px) { .beside { grid-template-columns: minmax(0, 1fr); gap: 14px; } }
@media (max-width: 600px) { main { padding: 18px 10px 40px; } section { padding: 14px; } h1 { font-size: 1.6rem; }
  th, td { padding-right: 8px; } table { font-size: .84rem; } small, em { white-space: normal; } .name { gap: 5px; }
  .runs td small:not(:empty) { max-width: 24ch; } }
@media (prefers-color-scheme: dark) {
  :root { --page: #101010; --card: #1a1a1a; --text: #e6e6e6; --soft: #a3a3a3; --line: #303030;
    --good: #56c98c; --bad: #f2857b; --same: #7fb4f0; --plain: #a3a3a3; }
  img, .name i { filter: invert(.9) hue-rotate(180deg); }
}
@media print { body { background: none; } section { break-inside: avoid; border: 0; padding: 0; } }
"""

HOW_TO_READ = """<ul>
<li><b>Pictures.</b> A thick line is the mean over seeds and prompts, a thin line is one run. A cross marks where a run was
stopped or failed. Accuracy between two evaluations is interpolated.</li>
<li><b>Common budget.</b> The shortest finished run sets it, and all curves are compared up to there. Each axis has its own:
a method that is cheap on one may be dear on another. A paired difference is taken at the budget of its two curves, whatever the
others have spent.</li>
<li><b>Stopped runs.</b> A run that a guard stopped, or that failed, keeps its last accuracy from there on. No run is left
out.</li>
<li><b>Area under the curve.</b> The mean accuracy on the way to the budget: of two curves that end alike, the one that
rises earlier has more.</li>
<li><b>Cost to the target.</b> The first place at which a run reaches the target accuracy, and the median over the runs, where
a run that never does counts as infinite. If at least half of the runs never do, the median is &ldquo;not reached&rdquo;.</li>
<li><b>Intervals and bands.</b> They are 95% intervals by hierarchical bootstrap: seeds are drawn with replacement, then
prompts within each drawn seed, and the mean is taken again, many times. A band holds at each place, not for the whole line
at once. No interval is corrected for the number of comparisons.</li>
<li><b>Few seeds.</b> With few seeds the intervals are too narrow rather than too wide: three runs show little of what
other seeds would do.</li>
<li><b>Paired differences.</b> In each draw both curves have the same seeds and the same prompts, so what is hard for both
is no difference. Only seeds that both curves have are used.</li>
<li><b>Verdicts.</b> &ldquo;On par&rdquo;: the whole interval of the difference lies within the margin, on either side of zero.
&ldquo;Better&rdquo; or &ldquo;worse&rdquo;: it is not on par, and the whole interval lies on one side of zero.
&ldquo;Undecided&rdquo;: these runs cannot tell, which does not mean that the two are alike. With one seed it is always
undecided.</li>
</ul>"""
