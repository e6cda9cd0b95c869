"""The types of all messages, and the codes of replies that refuse: all that a shim needs to know of the protocol."""

TRAIN_UPDATE = "train.update"
TRAIN_MASK = "train.mask"
QUERY_JOIN = "query.join"
QUERY_ANCHOR = "query.anchor"
QUERY_STATISTICS = "query.statistics"
QUERY_CATALOGUE = "query.catalogue"
QUERY_HISTOGRAM = "query.histogram"
QUERY_RELEASE = "query.release"
QUERY_EVALUATE = "query.evaluate"
QUERY_ADVERTISE = "query.advertise"
QUERY_REVEAL = "query.reveal"
QUERY_SHARE = "query.share"
QUERY_MASK = "query.mask"
QUERY_CONFIRM = "query.confirm"
QUERY_UNMASK = "query.unmask"
QUERY_MODEL = "query.model"

MESSAGE_TYPES = (
    TRAIN_UPDATE,
    TRAIN_MASK,
    QUERY_JOIN,
    QUERY_ANCHOR,
    QUERY_STATISTICS,
    QUERY_CATALOGUE,
    QUERY_HISTOGRAM,
    QUERY_RELEASE,
    QUERY_EVALUATE,
    QUERY_ADVERTISE,
    QUERY_REVEAL,
    QUERY_SHARE,
    QUERY_MASK,
    QUERY_CONFIRM,
    QUERY_UNMASK,
    QUERY_MODEL,
)

# Error codes of replies; Flower's own are below 100.
REFUSED = 101
NOT_READY = 102  # nobody was asked: the partner's worker does not run, or not yet
BUDGET_EXHAUSTED = 103
