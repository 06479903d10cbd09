from tools.inspect.inspect import add_parser as add_parser
