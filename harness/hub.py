"""The model hub: whether it can be reached, and why what was asked of it cannot be had."""

import http.client
import os
import threading
import urllib.error
import urllib.request

import config

# Data sets that the hub used to list without their owner.
HUB_IDS = {
    "glue": config.GLUE_NAMES[1],
    "sst2": "stanfordnlp/sst2",
    "imdb": "stanfordnlp/imdb",
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
}
HUB_PROBLEMS = []  # the first problem found; after it the hub's libraries are offline in this process
LOCAL_ADVICE = 'give a local MODEL_NAME and DATASET_NAME, or "embedded" for both'


class OutOfReach(ValueError):
    """The hub cannot give `what`, as messages name it, for this reason."""

    def __init__(self, what, reason):
        super().__init__(f"{what}: {reason}")
        self.reason = reason


def hub_problem(path, seconds=8.0):
    """Ask the hub for a file: why it does not answer within `seconds`, a str, or "" if it does, even with an error.

    path: the file's, below the hub's address (HF_ENDPOINT). After a problem the hub's libraries are offline
    (HF_HUB_OFFLINE), as they would retry for minutes; they must not be imported before.
    """
    if HUB_PROBLEMS:
        return HUB_PROBLEMS[0]
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    answer = ["the hub cannot be reached"]  # until it answers

    def ask():
        endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        try:
            with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{path}", method="HEAD"), timeout=seconds):
                answer[0] = ""
        except urllib.error.HTTPError as error:
            busy = error.code in (408, 429) or error.code >= 500  # what else it says, the hub's libraries say better
            answer[0] = f"the hub answers {error.code} {error.reason}, try again later" if busy else ""
        except (OSError, ValueError, http.client.HTTPException):
            pass  # it cannot be reached

    asking = threading.Thread(target=ask, daemon=True)  # a name look-up has no time limit of its own
    asking.start()
    asking.join(seconds)
    problem = answer[0]
    if problem:
        HUB_PROBLEMS.append(problem)
        os.environ["HF_HUB_OFFLINE"] = "1"
    return problem


def hub_reason(error, problem):
    """Why the hub's libraries raised `error`, a str: the problem that hub_problem found, or what their error means."""
    if problem:
        return f"{problem}, and no copy is in the cache; {LOCAL_ADVICE}"
    if "BuilderConfig" in str(error):
        return f'{error}; set DATASET_CONFIG to one of them, or to "" for the only one'
    cause, status = error, None
    while cause is not None and status is None:  # the libraries wrap the hub's answer in errors of their own
        status = getattr(getattr(cause, "response", None), "status_code", None)
        cause = cause.__cause__ or cause.__context__
    if status in (401, 404) or type(error).__name__ == "DatasetNotFoundError":
        return "the hub has nothing of this name, or it is private"
    return f"the hub answers {status}; {LOCAL_ADVICE}" if status else f"{error}; {LOCAL_ADVICE}"
