from collections import Counter, defaultdict

from janus_plugins.core.samples import answered, asked, item_columns


class Confusion:
    def __init__(self, config, facts):
        self.config = config

    def __call__(self, model, source, others):
        """Score how often each answer is found, averaged over answers: a rare one counts as a common one."""
        count = min(len(source), self.config.limit or len(source))
        said = defaultdict(Counter)
        for start in range(0, count, self.config.batch):
            samples = [source[at] for at in range(start, min(start + self.config.batch, count))]
            questions, items = zip(*map(asked, samples), strict=True)
            replies = model.ask(
                list(questions),
                items=item_columns(items),
                max_new_tokens=self.config.max_new_tokens,
                temperature=0.0,
            )
            for sample, reply in zip(samples, replies, strict=True):
                said["".join(map(str, answered(sample))).strip()][reply.strip()] += 1
        found = {answer: replies[answer] / replies.total() for answer, replies in said.items()}
        return {
            "score": sum(found.values()) / len(found),
            "said": {answer: dict(said[answer]) for answer in sorted(said)},
        }
