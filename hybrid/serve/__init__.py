"""``hybrid-serve``: a page to play with and an API in OpenAI's shape, over one pairing.

``jobs`` and ``engine`` draw (they know no HTTP), ``schemas`` says what requests look like, ``app`` joins the two,
``cli`` starts it. Needs the extra ``serve``; importing this package imports nothing else.
"""
