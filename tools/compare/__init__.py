from tools.compare.compare import add_parser as add_parser
