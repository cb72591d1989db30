from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="ORDERS_", env_file=".env")

    database_url: str = "postgresql+asyncpg://localhost/orders"
    redis_url: str = "redis://localhost"


settings = Settings()
