"""The diagnosis behind `operations doctor`: the chain from the settings to the failed queue, link by link."""
