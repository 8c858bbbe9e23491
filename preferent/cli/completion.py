"""The completion of verbs and options for bash and zsh, made from the parser."""

import argparse
from collections.abc import Iterator

SCRIPT = """\
# Completes preferent's verbs and options in bash and zsh: eval "$(preferent completion)"
if [ -n "$ZSH_VERSION" ]; then autoload -U +X bashcompinit && bashcompinit; fi
_preferent() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" verb="" word options="" verbs=""
  for word in "${{COMP_WORDS[@]:1:$((COMP_CWORD - 1))}}"; do
    case "${{verb:+$verb }}$word" in
      {verbs}) verb="${{verb:+$verb }}$word" ;;
    esac
  done
  case "$verb" in
{cases}
  esac
  case "$current" in
    -*) COMPREPLY=($(compgen -W "$options" -- "$current")) ;;
    *) COMPREPLY=($(compgen -W "$verbs" -- "$current")) ;;
  esac
}}
complete -o default -F _preferent preferent
"""


def script(parser: argparse.ArgumentParser) -> str:
    """Return the script that a shell reads; where no verb and no option fits, it completes file names."""
    words = dict(_words(parser, ""))
    cases = "\n".join(
        f'    "{verb}") verbs="{" ".join(inner)}" options="{" ".join(options)}" ;;'
        for verb, (inner, options) in words.items()
    )
    return SCRIPT.format(verbs="|".join(f'"{verb}"' for verb in words if verb), cases=cases)


def _words(parser: argparse.ArgumentParser, verb: str) -> Iterator[tuple[str, tuple[list[str], list[str]]]]:
    """Return the verbs and options that may follow each verb."""
    options = [option for action in parser._actions for option in action.option_strings]
    inner = {
        name: parser_
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, parser_ in action.choices.items()
    }
    yield verb, (list(inner), options)
    for name, parser_ in inner.items():
        yield from _words(parser_, f"{verb} {name}".strip())
