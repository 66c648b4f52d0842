def test_an_order_is_confirmed(function_app):
    function_app.send("orders", {"number": 7})
    confirmation = function_app.receive("confirmations", "all")
    assert confirmation.json() == {"number": 7, "state": "confirmed"}
    assert confirmation.subject == "orders/7"


def test_an_order_without_a_number_is_dead_lettered(function_app):
    function_app.send("orders", {})
    (dead,) = function_app.dead_letters("orders")
    assert dead.application_properties["DeadLetterReason"] == "MaxDeliveryCountExceeded"
