from tools.app.app import add_parser as add_parser
