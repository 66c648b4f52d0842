"""The diagnosis behind `operations doctor`: its checks, from the settings to the failed queue."""
