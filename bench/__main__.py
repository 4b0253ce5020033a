"""All measurements, one after the other: ``make bench``. Flags go to the first, see ``python -m bench --help``."""

import asyncio

from bench import first_token, model_decode, table_recovery, token_path


async def main() -> None:
    """Run and print."""
    arguments = token_path.parser().parse_args()
    print("Tokens through the whole path beside a plain proxy")
    await token_path.main(arguments)
    print("\nFrom question to first token")
    await first_token.main(first_token.parser().parse_args(["--warm-up", "5", "--route", arguments.route]))
    print("\nDecoding the model's stream")
    await model_decode.main()
    print("\nTables that come back")
    await table_recovery.main(table_recovery.parser().parse_args([]))


if __name__ == "__main__":
    asyncio.run(main())
