"""What a run reports, kept in lists."""


class Reports:
    """Every report of a run; `stop_at` interrupts it, as a person would, after so many shares of the work named."""

    def __init__(self, text: str = "", stop_at: int = 0) -> None:
        self.steps, self.advanced, self.notes = [], [], []
        self.text, self.left = text, stop_at

    def step(self, text, done, total):
        self.steps.append((text, done, total))

    def advance(self, text, done, total, part=""):
        self.advanced.append((text, done, total, part))
        self.left -= text == self.text
        if text == self.text and self.left == 0:
            raise KeyboardInterrupt

    def note(self, text):
        self.notes.append(text)
