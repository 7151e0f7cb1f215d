"""What the gate says, one file a reader: pure functions from verdicts to text.

A missing or inconclusive verdict is never shown as one that held, in any of them.
"""

from edgeport.verdicts.annotations import github_annotations
from edgeport.verdicts.code_scanning import sarif
from edgeport.verdicts.files import to_json, write_outputs
from edgeport.verdicts.junit import junit_xml
from edgeport.verdicts.pull_request import markdown
from edgeport.verdicts.terminal import reason_lines, table
from edgeport.verdicts.words import exit_code, headline, judged

__all__ = [
    "exit_code",
    "github_annotations",
    "headline",
    "judged",
    "junit_xml",
    "markdown",
    "reason_lines",
    "sarif",
    "table",
    "to_json",
    "write_outputs",
]
