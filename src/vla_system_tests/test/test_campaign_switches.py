"""What the campaign says of switches between sources (I11)."""

from vla_safety.proof.cases import run_block
from vla_system_tests.campaign import report
from vla_system_tests.campaign.state import Progress


def test_i11_a_campaign_reports_switches_and_leaks():
    """A block of 1000 cases has more than 100 switches, so 1e6 cases have more than 1e5."""
    progress = Progress("cases", "cases", 1, 1000, 1000, tally=run_block(1, 0))
    figures = report.figures({"cases": progress})
    assert figures["switches"] > 100 and figures["leaks"] == figures["violations"] == 0
    text = report.markdown({"cases": progress})
    assert f"to another {figures['switches']} times" in text and ": 0 leaks" in text
    progress.tally.counts["leaks"] = 3
    assert report.figures({"cases": progress})["leaks"] == 3
    assert report.figures({})["switches"] == report.figures({})["leaks"] == 0
