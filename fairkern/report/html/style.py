"""How the page looks, on a desktop and a phone, by day and by night; and what a script adds where it runs."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--page:#fbfaf8;--card:#fff;--ink:#1d2126;--soft:#5d6570;--line:#dcdad5;--track:#e9e7e2;
--kept:#3d6b96;--gone:#c03a4b;--a:#3d6b96;--b:#b0681a;--c:#2f7d5b;--d:#7b4f9e;--e:#8a6d1d;--f:#a8446f;--warn:#8a4b00;
--warnback:#fdf0dc}
@media(prefers-color-scheme:dark){:root{--page:#14171b;--card:#1b1f25;--ink:#e6e8eb;--soft:#a0a8b3;--line:#343a43;
--track:#2a3038;--kept:#7fb0dd;--gone:#f0808d;--a:#7fb0dd;--b:#e5a663;--c:#74c69d;--d:#c39be0;--e:#d9bf6a;--f:#e78bb3;
--warn:#ffc985;--warnback:#3a2a12}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:72rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .35rem;overflow-wrap:anywhere;text-wrap:balance}
h2{font-size:1.2rem;line-height:1.3;margin:0 0 .35rem}
h3{font-size:.95rem;margin:1.4rem 0 .4rem}
h3 small{font-weight:400;font-size:.88em}
section{margin-top:2.75rem}
p{margin:.35rem 0;overflow-wrap:anywhere}
.says,.asked,small{color:var(--soft)}
.says{max-width:46rem;margin-bottom:1rem}
code{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
data,td.n,.tick{font-variant-numeric:tabular-nums}
.card data{white-space:nowrap}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(15rem,1fr));gap:.9rem;margin-top:1.6rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1rem}
.card h3{margin:0;font-size:.85rem;font-weight:600;color:var(--soft)}
.card .after{font-size:1.65rem;line-height:1.25;font-weight:650;margin:.15rem 0;overflow-wrap:anywhere}
.card p{font-size:.88rem}
.warn{background:var(--warnback);color:var(--warn);border-radius:.5rem;padding:.6rem .8rem;margin:.9rem 0}
.kind{margin-bottom:1.6rem}
.bars{list-style:none;margin:0;padding:0}
.many{columns:2 24rem;column-gap:2.5rem}
.bars li{display:grid;grid-template-columns:minmax(0,11rem) minmax(0,1fr) 7.5rem;gap:0 .8rem;align-items:center;
padding:.2rem 0;break-inside:avoid}
.bars.many li{grid-template-columns:minmax(0,10.5rem) minmax(0,1fr) auto}
.bars .name{overflow-wrap:anywhere;font-size:.88rem;line-height:1.3}
.bars .count{text-align:right;font-size:.88rem;white-space:nowrap}
.track{display:block;height:.8rem;background:var(--track);border-radius:.15rem;min-width:2px}
.track i{display:block;height:100%;background:var(--kept);border-radius:.15rem}
.plot{display:grid;grid-template-columns:auto minmax(0,1fr);margin:.4rem 0 0;column-gap:.5rem}
.ylabel,.xlabel{font-size:.82rem;color:var(--soft);line-height:1.35}
.ylabel{grid-column:1/3;margin-bottom:.7rem}
.xlabel{grid-column:2;text-align:center;margin-top:.15rem}
.yticks,.xticks{position:relative;font-size:.78rem;line-height:1.2;color:var(--soft)}
.yticks{grid-column:1}
.yticks .tick{position:absolute;right:0;transform:translateY(-50%)}
.xticks{grid-column:2;height:1.75rem}
.xticks .tick{position:absolute;top:.6rem;transform:translateX(-50%);white-space:nowrap}
.area{grid-column:2;height:21rem;border-left:1px solid var(--soft);border-bottom:1px solid var(--soft)}
.area svg{display:block;width:100%;height:100%;overflow:visible}
.readout{grid-column:1/3;min-height:1.5em;font-size:.85rem;margin:.3rem 0 0}
path{fill:none}
.grid{stroke:var(--line);stroke-width:1}
.curve{stroke:var(--of,var(--a));stroke-width:1.6;opacity:.75}
.many-curves .curve{stroke-width:1.1;opacity:.5}
.reach{stroke:var(--of,var(--a));stroke-width:8;stroke-linecap:round}
.threshold{stroke:var(--gone);stroke-width:1.5;stroke-dasharray:7 5}
.whole{stroke:var(--soft);stroke-width:1.3;stroke-dasharray:2 5;stroke-linecap:round}
.kb .curve,.kb .reach,i.kb{stroke:var(--b)}.kc .curve,.kc .reach{stroke:var(--c)}
.kd .curve,.kd .reach{stroke:var(--d)}.ke .curve,.ke .reach{stroke:var(--e)}.kf .curve,.kf .reach{stroke:var(--f)}
.stays,.goes{stroke-width:6;stroke-linecap:round;opacity:.55}
.stays{stroke:var(--kept)}.goes{stroke:var(--gone);opacity:.75}
g[tabindex]:hover .curve,g[tabindex]:focus .curve,.plot g.on .curve{stroke-width:3.5;opacity:1}
g[tabindex]:hover .reach,g[tabindex]:focus .reach{stroke-width:12}
.units g:focus .stays,.units g:focus .goes{stroke-width:11;opacity:1}
.units path:hover,.plot path.on{stroke-width:13;opacity:1}
g:focus{outline:none}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem 1.3rem;margin:.3rem 0 .8rem;padding:0;font-size:.85rem}
.key i{display:inline-block;width:1.4rem;height:0;margin-right:.45rem;vertical-align:middle;
border-top:3px solid var(--a)}
.key i.kb{border-color:var(--b)}.key i.kc{border-color:var(--c)}.key i.kd{border-color:var(--d)}
.key i.ke{border-color:var(--e)}.key i.kf{border-color:var(--f)}
.key i.threshold{border-top:2px dashed var(--gone)}.key i.whole{border-top:2px dotted var(--soft)}
.key i.dot,.key i.stays,.key i.goes{width:.65rem;height:.65rem;border:0;border-radius:50%;background:var(--ink)}
.key i.stays{background:var(--kept);opacity:1}.key i.goes{background:var(--gone);opacity:1}
.wide{overflow-x:auto;max-width:100%;border:1px solid var(--line);border-radius:.5rem;background:var(--card)}
table{border-collapse:collapse;width:100%;font-size:.86rem}
th,td{text-align:left;padding:.35rem .7rem;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600;white-space:nowrap}
td.n,th.n{text-align:right;white-space:nowrap}
tr:last-child td{border-bottom:0}
td:first-child{overflow-wrap:anywhere;min-width:9rem}
td.reason{min-width:14rem}
details{margin-top:.8rem}
summary{cursor:pointer;color:var(--soft);padding:.25rem 0}
.listed{margin:0}
.listed div{display:grid;grid-template-columns:minmax(0,14rem) minmax(0,1fr);gap:0 1rem;padding:.3rem 0;
border-bottom:1px solid var(--line);font-size:.9rem}
.listed dt{color:var(--soft);overflow-wrap:anywhere}
.listed dd{margin:0;overflow-wrap:anywhere}
.pair{columns:3 19rem;column-gap:2.5rem}
.pair>div{break-inside:avoid;padding-bottom:1.2rem}
.pair h3{margin-top:0}
.pair .listed div{grid-template-columns:minmax(0,9rem) minmax(0,1fr)}
.notes{padding-left:1.1rem;margin:.4rem 0}
.notes li{margin:.25rem 0;overflow-wrap:anywhere}
@media(max-width:40rem){main{padding:1.25rem 1rem 3rem}h1{font-size:1.4rem}section{margin-top:2.1rem}
.bars li{grid-template-columns:minmax(0,1fr) auto;padding:.3rem 0}.bars .bar{grid-column:1/3;grid-row:2}
.bars.many li{grid-template-columns:minmax(0,1fr) auto}.area{height:17rem}
.listed div,.pair .listed div{grid-template-columns:minmax(0,8.5rem) minmax(0,1fr)}}
@media print{.readout{display:none}section{break-inside:avoid-page}}
"""

# Titles are shown by browsers where a mouse rests. Where a finger taps or a key moves, this shows them under the chart.
SCRIPT = """
for (const plot of document.querySelectorAll(".plot")) {
  const line = plot.querySelector(".readout");
  let last = null;
  const tell = (event) => {
    const mark = event.target.closest ? event.target.closest("path:has(title), g[tabindex]") : null;
    const title = mark && mark.querySelector("title");
    if (!title) return;
    if (last) last.classList.remove("on");
    (last = mark).classList.add("on");
    line.textContent = title.textContent;
  };
  for (const kind of ["pointerover", "click", "focusin"]) plot.addEventListener(kind, tell);
}
"""
